// Which model and which text encoders reach a node: links are followed upstream to the loader, through everything in between.

import { app, ask } from "./frontend.mjs";
import { Blocks } from "../widgets/grammar.mjs";

// A loader's widget -> the folder that its file names belong to; "" is this pack's own rule.
const FILE_WIDGETS = { checkpoint: "", ckpt_name: "checkpoints", unet_name: "diffusion_models" };
const MUTED = 2;
const SUBGRAPH_INPUT = -10;
const FARTHEST = 200; // nodes; a graph that is being rewired may hold a ring for a moment

/**
 * The file that the model at a node's input is loaded from, { name, folder }, or null.
 * Args: pass, called with each node on the way and, of the loader, the widget that names the file.
 */
export function modelFile(node, pass = () => {}, input = "model") {
  for (const { source, slot } of upstream(node, input, "MODEL")) {
    const widget = slot < 0 ? fileWidget(source) : null;
    pass(source, widget);
    if (source.mode === MUTED) return null;
    if (slot < 0) return widget?.value ? { name: widget.value, folder: FILE_WIDGETS[widget.name] } : null;
  }
  return null;
}

/** What the loader of the CLIP at a node's input calls it, "flux" or the like; null where it calls it nothing. */
export function clipKind(node) {
  for (const { source, slot } of upstream(node, "clip", "CLIP")) {
    if (slot < 0) return source.widgets?.find((widget) => widget.name === "type")?.value ?? null;
  }
  return null;
}

/** The blocks of a model in a file as above; null where they are not known. */
export async function blocksIn(file) {
  if (!file) return null;
  const query = new URLSearchParams({ name: file.name, folder: file.folder });
  const found = await ask(`/mmdit/blocks?${query}`);
  return found?.double ? new Blocks(found.double, found.single) : null;
}

/** Each node that a type comes through to an input, nearest first, and the slot it comes in by; -1: it is made there. */
function* upstream(node, input, type) {
  let here = { source: node, slot: node.inputs?.findIndex((slot) => slot.name === input) ?? -1 };
  for (let step = 0; here.slot >= 0 && step < FARTHEST; step += 1) {
    const source = behind(here.source, here.slot)?.node;
    if (!source) return;
    here = { source, slot: passing(source, type) };
    yield here;
  }
}

/** The node whose output feeds an input, subgraphs opened: { node } or null. */
export function behind(node, slot) {
  const link = linkOf(node.graph, node.inputs[slot]?.link);
  if (!link) return null;
  if (Number(link.origin_id) === SUBGRAPH_INPUT) {
    const outer = holderOf(node.graph);
    return outer ? behind(outer, link.origin_slot) : null;
  }
  return opened(node.graph.getNodeById(link.origin_id), link.origin_slot);
}

/** The node that makes an output: of a subgraph, the one inside it. */
function opened(node, slot) {
  if (!node?.subgraph) return node ? { node } : null;
  const link = linkOf(node.subgraph, node.subgraph.outputs?.[slot]?.linkIds?.[0]);
  return link ? opened(node.subgraph.getNodeById(link.origin_id), link.origin_slot) : null;
}

/** The node that stands for a subgraph in the graph around it. */
function holderOf(graph, within = app.rootGraph ?? app.graph) {
  for (const node of within._nodes ?? []) {
    if (!node.subgraph) continue;
    if (node.subgraph === graph) return node;
    const deeper = holderOf(graph, node.subgraph);
    if (deeper) return deeper;
  }
  return null;
}

function linkOf(graph, id) {
  if (id === null || id === undefined || !graph) return null;
  return graph.getLink?.(id) ?? graph.links?.[id] ?? null;
}

function fileWidget(node) {
  return node.widgets?.find((widget) => Object.hasOwn(FILE_WIDGETS, widget.name));
}

/** The input that a node hands on: the first of that type, or a reroute's only one; -1 for none. */
function passing(node, type) {
  const inputs = (node.inputs ?? []).filter((slot) => !slot.widget);
  const handed = inputs.find((slot) => slot.type === type) ?? (inputs.length === 1 ? inputs[0] : null);
  return handed ? node.inputs.indexOf(handed) : -1;
}
