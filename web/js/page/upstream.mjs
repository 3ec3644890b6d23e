// Finds the model and the text encoders of a node by following its links, through subgraphs.

import { app, requestOnce } from "./frontend.mjs";
import { Blocks } from "../widgets/grammar.mjs";

// A loader's widget -> the folder of its files; "" stands for the folders of MMDiTLoader.
const FILE_WIDGETS = { checkpoint: "", ckpt_name: "checkpoints", unet_name: "diffusion_models" };
const MUTED = 2;
const SUBGRAPH_INPUT = -10;
const MAX_NODES = 200; // a graph that is being rewired may contain a cycle for a moment

/**
 * The file of the model at a node's input, { name, folder }, or null.
 * Args: visit, called with each node on the way and, for the loader, the widget with the file's name.
 */
export function modelFile(node, visit = () => {}, input = "model") {
  for (const { source, slot } of upstream(node, input, "MODEL")) {
    const widget = slot < 0 ? fileWidget(source) : null;
    visit(source, widget);
    if (source.mode === MUTED) return null;
    if (slot < 0) return widget?.value ? { name: widget.value, folder: FILE_WIDGETS[widget.name] } : null;
  }
  return null;
}

/** The `type` that the loader of a node's CLIP is set to, such as "flux"; null if it has no such widget. */
export function clipKind(node) {
  for (const { source, slot } of upstream(node, "clip", "CLIP")) {
    if (slot < 0) return source.widgets?.find((widget) => widget.name === "type")?.value ?? null;
  }
  return null;
}

/** The blocks of the model in a file, with its `family` if that is known; or null if they are unknown. */
export async function blocksIn(file) {
  if (!file) return null;
  const query = new URLSearchParams({ name: file.name, folder: file.folder });
  const found = await requestOnce(`/mmdit/blocks?${query}`);
  if (!found || !(found.double + found.single > 0)) return null;
  const blocks = new Blocks(found.double, found.single, found.sections, found.refiners);
  return Object.assign(blocks, { family: found.family });
}

/** The nodes from an input to its source, nearest first, each with its input slot; -1 at the source. */
function* upstream(node, input, type) {
  let at = { source: node, slot: node.inputs?.findIndex((slot) => slot.name === input) ?? -1 };
  for (let step = 0; at.slot >= 0 && step < MAX_NODES; step += 1) {
    const source = sourceOf(at.source, at.slot);
    if (!source) return;
    at = { source, slot: passing(source, type) };
    yield at;
  }
}

/** The node whose output feeds an input, inside subgraphs too; or null. */
export function sourceOf(node, slot) {
  const link = linkOf(node.graph, node.inputs[slot]?.link);
  if (!link) return null;
  if (Number(link.origin_id) === SUBGRAPH_INPUT) {
    const outer = holderOf(node.graph);
    return outer ? sourceOf(outer, link.origin_slot) : null;
  }
  return inside(node.graph.getNodeById(link.origin_id), link.origin_slot);
}

/** The node that makes an output; for a subgraph, the node inside it. */
function inside(node, slot) {
  if (!node?.subgraph) return node ?? null;
  const link = linkOf(node.subgraph, node.subgraph.outputs?.[slot]?.linkIds?.[0]);
  return link ? inside(node.subgraph.getNodeById(link.origin_id), link.origin_slot) : null;
}

/** The node that a subgraph is in its parent graph. */
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

/** The input that a node passes on: the first of that type, or a reroute's only one; -1 for none. */
function passing(node, type) {
  const inputs = (node.inputs ?? []).filter((slot) => !slot.widget);
  const passed = inputs.find((slot) => slot.type === type) ?? (inputs.length === 1 ? inputs[0] : null);
  return passed ? node.inputs.indexOf(passed) : -1;
}
