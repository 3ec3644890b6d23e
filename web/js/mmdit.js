// The entry script. ComfyUI imports every .js file of a pack at startup, so this is the only one; the .mjs modules are
// imported with the first node that needs them.
//
// It holds what a node needs on creation: a widget for its strip, with a plain text field until the strip's module is
// loaded, and the user's defaults for new nodes. Without this script the inputs are the server's plain text fields.

import { app } from "../../../scripts/app.js";

const [, PACK] = decodeURIComponent(new URL(import.meta.url).pathname).match(/\/extensions\/(.+)\/js\/[^/]+$/) ?? [];

const TYPE = "MMDIT_BLOCKS";
const INPUT = "blocks";
// Node -> its action on a block; levels: each block can have its own strength.
const STRIPS = {
  BlockSkip: { action: "skip" },
  TextBoost: { action: "boost", levels: true },
  TextDisable: { action: "disable" },
  BlockPrompt: { action: "prompt" },
  BlockAnalysis: { action: "analyse" },
};
// Modules: for all nodes, for nodes with a strip, and for some node types.
const [ALL_NODES, STRIP] = ["all_nodes.mjs", "widgets/block_widget.mjs"];
const SAMPLER = "FlowMatchingSampler";
const TOKENS = "panels/tokens.mjs";
const BY_TYPE = { [SAMPLER]: "panels/curve.mjs", TripleTextEncode: TOKENS, SpeedPlan: "panels/speed_plan.mjs" };
const loaded = new Map(); // name -> module
const loading = new Map(); // name -> promise of the module
const HEIGHT = { plain: 78, levels: 94 }; // pixels: the height in strip.css and two margins
const MARGIN = 5;

// Name of a node colour of ComfyUI -> the nodes that get it; all others are blue.
const COLOURS = {
  green: ["TripleTextEncode"],
  cyan: ["MMDiTLoader"],
  purple: Object.keys(STRIPS),
};
const SOLVERS = ["euler"]; // replaced by the server's list
// Input of the sampler -> the setting with its default for new nodes.
const DEFAULTS = Object.fromEntries(
  ["Steps", "Cfg", "Solver", "Reuse"].map((name) => [name.toLowerCase(), `MMDiT.NewSampler.${name}`]),
);
const NEW = "New Flow Matching Samplers";
const NODES = "MMDiT nodes";
const onlyNew = "For nodes that you add from now on. Nodes in saved workflows keep their value.";
const defaultFor = (input, name, more) => ({
  id: DEFAULTS[input],
  name,
  category: ["MMDiT", NEW, DEFAULTS[input].split(".").at(-1)],
  tooltip: onlyNew,
  ...more,
});
// The dialog shows the last one first. Translations: locales/*/settings.json and main.json.
const SETTINGS = [
  defaultFor("reuse", "Reuse steps of earlier runs (up to 1 GB of memory)", { type: "boolean", defaultValue: true }),
  defaultFor("solver", "Solver", { type: "combo", options: SOLVERS, defaultValue: "euler" }),
  defaultFor("cfg", "Guidance (cfg)", {
    type: "number",
    attrs: { min: 0, max: 100, step: 0.1, maxFractionDigits: 2 },
    defaultValue: 4.5,
  }),
  defaultFor("steps", "Steps", { type: "number", attrs: { min: 1, max: 10000, step: 1 }, defaultValue: 28 }),
  {
    id: "MMDiT.Nodes.Tokens",
    name: "Count tokens while typing",
    category: ["MMDiT", NODES, "Tokens"],
    tooltip:
      "Triple Text Encode shows how many tokens each encoder uses and which are cut. The texts are sent to your own " +
      "ComfyUI server only.",
    type: "boolean",
    defaultValue: true,
    onChange: () => loaded.get(TOKENS)?.settingsChanged(),
  },
  {
    id: "MMDiT.Nodes.Strip",
    name: "Blocks as a strip",
    category: ["MMDiT", NODES, "Strip"],
    tooltip: "Off: a plain text field, such as 0-5, 9. Applies to nodes when they are added or opened.",
    type: "boolean",
    defaultValue: true,
  },
  {
    id: "MMDiT.Nodes.Colours",
    name: "Coloured titles",
    category: ["MMDiT", NODES, "Colours"],
    tooltip: onlyNew,
    type: "boolean",
    defaultValue: true,
  },
];

export const ours = new Set(); // this pack's node types

app.registerExtension({
  name: "mmdit",
  settings: SETTINGS,
  getCustomWidgets: () => ({ [TYPE]: blocksWidget }),
  beforeRegisterNodeDef(_, definition) {
    if (definition.python_module !== `custom_nodes.${PACK}`) return;
    ours.add(definition.name);
    const inputs = definition.input?.required ?? {};
    if (STRIPS[definition.name] && inputs[INPUT]) inputs[INPUT][1] = { ...inputs[INPUT][1], widgetType: TYPE };
    if (definition.name === SAMPLER) SOLVERS.splice(0, SOLVERS.length, ...choices(inputs.solver));
  },
  // ComfyUI awaits this, so the modules are loaded before the nodes of a workflow are created.
  async beforeConfigureGraph(graph) {
    const subgraphs = graph?.definitions?.subgraphs ?? [];
    const nodes = [graph, ...subgraphs].flatMap((each) => each?.nodes ?? []);
    await Promise.all([...new Set(nodes.flatMap(({ type }) => modulesOf(type)))].map(load));
  },
  nodeCreated(node) {
    if (node.subgraph) drawPromoted(node);
    if (!ours.has(node.comfyClass)) return;
    if (node.comfyClass === SAMPLER) applyDefaults(node);
    colour(node);
    // Nodes 2.0 reserves space for the advanced inputs, which it hides; at height 0 it grows the node to fit.
    if (globalThis.LiteGraph?.vueNodesMode) node.setSize([node.size[0], 0]);
    for (const name of modulesOf(node.comfyClass)) withModule(name, (module) => module.nodeCreated?.(node));
  },
  refreshComboInNodes: () => loaded.get(ALL_NODES)?.clearRequests(),
  afterConfigureGraph: () => loaded.get(STRIP)?.updateStrips(),
});

/** The modules that a node type needs. */
function modulesOf(type) {
  return ours.has(type) ? [ALL_NODES, STRIPS[type] ? STRIP : BY_TYPE[type]].filter(Boolean) : [];
}

/** Import a module. Returns: a promise of it, or of null on failure; a failed import is tried again next time. */
function load(name) {
  if (!loading.has(name)) {
    const failed = (error) => {
      console.error("MMDiT: a script did not load; the nodes show plain inputs.", error);
      loading.delete(name);
      return null;
    };
    const done = (module) => loaded.set(name, module).get(name);
    loading.set(name, import(`./${name}`).then(done, failed));
  }
  return loading.get(name);
}

/** Call run(module): now if the module is loaded, else once it is. */
function withModule(name, run) {
  if (loaded.has(name)) run(loaded.get(name));
  else load(name).then((module) => module && run(module));
}

function choices([kind, options] = []) {
  return Array.isArray(kind) ? kind : (options?.options ?? []);
}

/** The value of one of the settings above. */
export function setting(id) {
  const { defaultValue } = SETTINGS.find((each) => each.id === id);
  return app.extensionManager?.setting?.get(id) ?? defaultValue;
}

/** Give a new sampler the user's defaults. A saved or copied node has its own values and starts from the server's. */
function applyDefaults(node) {
  const original = new Map();
  for (const widget of node.widgets ?? []) {
    if (!Object.hasOwn(DEFAULTS, widget.name)) continue;
    original.set(widget, widget.value);
    widget.value = setting(DEFAULTS[widget.name]);
  }
  unlessSaved(node, () => {
    for (const [widget, value] of original) widget.value = value;
  });
}

/** Colour a new node's title. A saved or copied node keeps its own colour, or none. */
function colour(node) {
  const [name] = Object.entries(COLOURS).find(([, types]) => types.includes(node.comfyClass)) ?? ["blue"];
  const { color } = globalThis.LGraphCanvas?.node_colors?.[name] ?? {};
  if (!color || !setting("MMDiT.Nodes.Colours")) return;
  node.color = color;
  unlessSaved(node, () => (node.color = undefined));
}

/** Call undo before a node gets the values of a saved one: ComfyUI creates saved nodes like new ones. */
function unlessSaved(node, undo) {
  const { configure } = node;
  let saved = false;
  node.configure = function (...values) {
    if (!saved) undo();
    saved = true;
    return configure.apply(this, values);
  };
}

function blocksWidget(node, name, [, options]) {
  const initial = String(options?.default ?? "");
  if (!setting("MMDiT.Nodes.Strip")) return app.widgets.STRING(node, name, ["STRING", { default: initial }], app);
  let text = initial;
  const value = { get: () => text, set: (now) => (text = now) };
  const widget = addStrip({ node, about: node, name, value });
  return { widget, minWidth: 320, minHeight: widget.computeSize(320)[1] };
}

/**
 * Add a strip to a node. Args: about, the node whose blocks it chooses; not `node` if the input is promoted out of a
 * subgraph; value, { get, set } of the text.
 */
function addStrip({ node, about, name, value }) {
  const kind = STRIPS[about.comfyClass];
  const element = document.createElement("div");
  let show = () => {};
  const height = kind.levels ? HEIGHT.levels : HEIGHT.plain;
  // The final height: the style sheet loads later, and a node must not grow during a drag.
  element.style.minHeight = `${height - 2 * MARGIN}px`;
  const widget = addElement(node, name, TYPE, element, () => height, {
    getValue: value.get,
    setValue(now) {
      value.set(String(now ?? ""));
      show(value.get());
    },
    margin: MARGIN,
  });
  if (!loaded.has(STRIP)) show = plainField(element, widget);
  withModule(STRIP, ({ drawStrip }) => (show = drawStrip({ node, about, widget, element, kind })));
  return widget;
}

/** The field shown until the strip's module is loaded. Returns: a function that shows a text. */
function plainField(element, widget) {
  const field = document.createElement("input");
  queueMicrotask(() => (field.ariaLabel = widget.label ?? widget.name));
  field.value = widget.value;
  field.addEventListener("input", () => (widget.value = field.value));
  element.append(field);
  return (text) => {
    if (field.value !== text) field.value = text;
  };
}

/** Add an HTML widget to a node; `height()` is its height in both renderers. */
export function addElement(node, name, type, element, height, options) {
  const widget = node.addDOMWidget(name, type, element, { hideOnZoom: false, ...options });
  widget.computeSize = (width) => [width, height()];
  // With it, the widget would take all spare height in Nodes 2.0.
  widget.computeLayoutSize = undefined;
  // With a width, an open side panel would shrink the widget during a click.
  Object.defineProperty(widget, "width", { get: () => undefined, set: () => {} });
  return widget;
}

/** Make a widget that only its input holds: the node would list it, too. */
function heldByInput(node, make) {
  node.addCustomWidget = (widget) => widget; // for now
  try {
    return make();
  } finally {
    delete node.addCustomWidget;
  }
}

/** Draw strips for inputs that a subgraph promotes: ComfyUI draws promoted text areas only and leaves other HTML blank. */
function drawPromoted(node) {
  const before = node.createPromotedHostWidget;
  node.createPromotedHostWidget = function (input, id, source) {
    const added = this.graph?.getNodeById(this.id) === this; // until then its id is temporary
    const stored = source.type === TYPE && added ? this._projectPromotedWidget?.(input) : null;
    if (!stored) return before?.call(this, input, id, source);
    const value = { get: () => String(stored.value ?? ""), set: (now) => (stored.value = now) };
    return heldByInput(this, () => addStrip({ node: this, about: source.node, name: input.name, value }));
  };
}
