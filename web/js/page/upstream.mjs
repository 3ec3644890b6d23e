// Finds the model, the text encoders and the values of a node by following its links: through subgraphs, reroutes, and the
// Set and Get nodes of other packs.

import { app, requestOnce } from "./frontend.mjs";
import { Blocks } from "../widgets/grammar.mjs";

// A loader's widget -> the folder of its files; "" means the folders of MMDiTLoader, and "*" all that may hold a model.
const FILE_WIDGETS = { checkpoint: "", ckpt_name: "checkpoints", unet_name: "diffusion_models" };
const ANY_FOLDER = "*";
const GGUF = /\.gguf$/i;
const GGUF_FOLDER = "unet_gguf"; // of the pack ComfyUI-GGUF
const MODEL_FILE = /\.(safetensors|sft|gguf)$/i;
const MODEL_WIDGET = /model|unet|ckpt|checkpoint/i; // of other packs' loaders
const VALUE_NODES = /^(Primitive|(String|INT|FLOAT)Constant$)/; // their output is their first widget's value
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
    if (slot >= 0) continue;
    const name = widget && valueOf(source, widget.name, visit);
    return name ? { name, folder: GGUF.test(name) ? GGUF_FOLDER : (FILE_WIDGETS[widget.name] ?? ANY_FOLDER) } : null;
  }
  return null;
}

/**
 * An input's value before a run: its widget's or, if it is linked, that of a node which holds a value, or of the widget that
 * a subgraph has in its place; undefined if it is unknown. Args: visit, called with each node and widget on the way.
 */
export function valueOf(node, name, visit = () => {}) {
  const slot = node.inputs?.findIndex((each) => each.widget?.name === name) ?? -1;
  const link = slot < 0 ? null : linkOf(node.graph, node.inputs[slot].link);
  if (!link) {
    const widget = node.widgets?.find((each) => each.name === name);
    visit(node, widget);
    return widget?.value;
  }
  const outer = Number(link.origin_id) === SUBGRAPH_INPUT ? holderOf(node.graph) : null;
  const promoted = outer?.inputs?.[link.origin_slot];
  if (promoted && (promoted.link ?? null) === null) {
    const widget = outer.getWidgetFromSlot?.(promoted);
    visit(outer, widget);
    return widget?.value;
  }
  const source = passedOn(sourceOf(node, slot));
  if (!source || !VALUE_NODES.test(source.type) || !source.widgets?.length) return undefined;
  return valueOf(source, source.widgets[0].name, visit);
}

/** The first node before reroutes. */
function passedOn(source) {
  for (let step = 0; source?.type === "Reroute" && step < MAX_NODES; step += 1) source = sourceOf(source, 0);
  return source;
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
  const source = inside(node.graph.getNodeById(link.origin_id), link.origin_slot);
  return source?.type === "GetNode" ? setBy(source) : source;
}

/** The node whose output reaches a Get node through the Set node of the same name; or null. */
function setBy(get) {
  const [name] = get.widgets ?? [];
  const set = (get.graph?._nodes ?? []).find(({ type, widgets }) => type === "SetNode" && widgets?.[0].value === name?.value);
  return set && sourceOf(set, 0);
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

/** The widget with the name of a loader's model file. */
function fileWidget(node) {
  const widgets = node.widgets ?? [];
  const holdsFile = ({ name, value }) => MODEL_WIDGET.test(name) && MODEL_FILE.test(value);
  return widgets.find(({ name }) => Object.hasOwn(FILE_WIDGETS, name)) ?? widgets.find(holdsFile) ?? null;
}

/** The input that a node passes on: the first of that type, a switch's first one with a link, a reroute's only one; or -1. */
function passing(node, type) {
  const inputs = (node.inputs ?? []).filter((slot) => !slot.widget);
  const linked = inputs.find((slot) => slot.type === "*" && (slot.link ?? null) !== null);
  const passed = inputs.find((slot) => slot.type === type) ?? linked ?? (inputs.length === 1 ? inputs[0] : null);
  return passed ? node.inputs.indexOf(passed) : -1;
}
