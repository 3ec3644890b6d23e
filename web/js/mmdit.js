// The one script that ComfyUI loads by itself: it imports every .js of a pack while the page opens. The others, the
// .mjs beside it, come with the first node that needs them.
//
// Here is what a node needs in the moment that it is made: the place of its strip, a plain text field until the strip
// is here, and the values that a person chose for new nodes. Where this script does not load either, the inputs stay
// the plain text fields that the server describes.

import { app } from "../../../scripts/app.js";

const [, PACK] = decodeURIComponent(new URL(import.meta.url).pathname).match(/\/extensions\/(.+)\/js\/[^/]+$/) ?? [];

const TYPE = "MMDIT_BLOCKS";
const INPUT = "blocks";
// Node -> what it does to a block, in a word; levels: its blocks may have strengths.
const STRIPS = {
  BlockSkip: { action: "skip" },
  TextBoost: { action: "boost", levels: true },
  TextDisable: { action: "disable" },
  BlockPrompt: { action: "prompt" },
  BlockAnalysis: { action: "analyse" },
};
// What comes with the first node of this pack, and with the first of some of them.
const [PARTS, BLOCKS] = ["all_nodes.mjs", "widgets/block_widget.mjs"];
const TOKENS = "panels/tokens.mjs";
const OWN = { FlowMatchingSampler: "panels/curve.mjs", TripleTextEncode: TOKENS, SpeedPlan: "panels/speed_plan.mjs" };
const here = new Map(); // name of a module -> it
const coming = new Map(); // name -> the promise of it
const HEIGHT = { plain: 78, levels: 94 }; // pixels in the classic renderer: that of strip.css and both margins
const MARGIN = 5;

const SAMPLER = "FlowMatchingSampler";
// What a node works on -> a title of one of the colours that the host offers for nodes.
const COLOURS = {
  blue: [SAMPLER, "FlowInvert", "MMDiTSampler", "SpeedPlan"],
  green: ["TripleTextEncode"],
  cyan: ["MMDiTLoader"],
  purple: Object.keys(STRIPS),
};
const SOLVERS = ["euler"]; // the server's list takes its place
// Input of the sampler -> the setting that says what a new one gets.
const CHOSEN = { steps: "MMDiT.NewSampler.Steps", cfg: "MMDiT.NewSampler.Cfg", solver: "MMDiT.NewSampler.Solver" };
const NEW = "New Flow Matching Samplers";
const NODES = "MMDiT nodes";
const onlyNew = "For nodes that you add from now on. Workflows that you open keep their own value.";
const chosen = (input, name, more) => ({
  id: CHOSEN[input],
  name,
  category: ["MMDiT", NEW, CHOSEN[input].split(".").at(-1)],
  tooltip: onlyNew,
  ...more,
});
// In the dialog the last one stands first. Their words in other languages: locales/*/settings.json, main.json.
const SETTINGS = [
  chosen("solver", "Solver", { type: "combo", options: SOLVERS, defaultValue: "euler" }),
  chosen("cfg", "Guidance (cfg)", {
    type: "number",
    attrs: { min: 0, max: 100, step: 0.1, maxFractionDigits: 2 },
    defaultValue: 4.5,
  }),
  chosen("steps", "Steps", { type: "number", attrs: { min: 1, max: 10000, step: 1 }, defaultValue: 28 }),
  {
    id: "MMDiT.Nodes.Tokens",
    name: "Count tokens while typing",
    category: ["MMDiT", NODES, "Tokens"],
    tooltip:
      "Triple Text Encode shows how many tokens each encoder reads and what is cut. The texts go to your own ComfyUI " +
      "server only.",
    type: "boolean",
    defaultValue: true,
    onChange: () => here.get(TOKENS)?.settingsChanged(),
  },
  {
    id: "MMDiT.Nodes.Strip",
    name: "Blocks as a strip",
    category: ["MMDiT", NODES, "Strip"],
    tooltip: "Off: a plain text field, such as 0-5, 9. It takes effect on nodes as they are added or opened.",
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

const ours = new Set(); // types of this pack's nodes

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
  // The host waits for it: the nodes of a workflow find everything here.
  async beforeConfigureGraph(graph) {
    const inside = graph?.definitions?.subgraphs ?? [];
    const nodes = [graph, ...inside].flatMap((each) => each?.nodes ?? []);
    await Promise.all([...new Set(nodes.flatMap(({ type }) => modulesOf(type)))].map(bring));
  },
  nodeCreated(node) {
    if (node.subgraph) drawPromoted(node);
    if (!ours.has(node.comfyClass)) return;
    if (node.comfyClass === SAMPLER) chooseValues(node);
    colour(node);
    // Nodes 2.0 leaves room for the advanced inputs, which it hides; it grows a node to what it shows.
    if (globalThis.LiteGraph?.vueNodesMode) node.setSize([node.size[0], 0]);
    for (const name of modulesOf(node.comfyClass)) withModule(name, (module) => module.nodeCreated?.(node));
  },
  refreshComboInNodes: () => here.get(PARTS)?.forget(),
  afterConfigureGraph: () => here.get(BLOCKS)?.watched(),
});

/** The modules that a node of a type needs. */
function modulesOf(type) {
  return ours.has(type) ? [PARTS, STRIPS[type] ? BLOCKS : OWN[type]].filter(Boolean) : [];
}

/** Another module; null where it cannot be had, and then it is asked for again. */
function bring(name) {
  if (!coming.has(name)) {
    const failed = (error) => {
      console.error("MMDiT: its nodes stay plain, a script did not load.", error);
      coming.delete(name);
      return null;
    };
    const came = (module) => here.set(name, module).get(name);
    coming.set(name, import(`./${name}`).then(came, failed));
  }
  return coming.get(name);
}

/** Do something with another module: now, or when it is here. */
function withModule(name, run) {
  if (here.has(name)) run(here.get(name));
  else bring(name).then((module) => module && run(module));
}

function choices([kind, options] = []) {
  return Array.isArray(kind) ? kind : (options?.options ?? []);
}

/** What the settings dialog says of one of the settings above. */
export function setting(id) {
  const { defaultValue } = SETTINGS.find((each) => each.id === id);
  return app.extensionManager?.setting?.get(id) ?? defaultValue;
}

/** Give a new sampler the values of the settings. A saved or copied one brings its own, and misses none of these. */
function chooseValues(node) {
  const usual = new Map();
  for (const widget of node.widgets ?? []) {
    if (!Object.hasOwn(CHOSEN, widget.name)) continue;
    usual.set(widget, widget.value);
    widget.value = setting(CHOSEN[widget.name]);
  }
  unlessSaved(node, () => {
    for (const [widget, value] of usual) widget.value = value;
  });
}

/** Colour a new node's title. A saved or copied one brings its own colour, or none. */
function colour(node) {
  const [name] = Object.entries(COLOURS).find(([, types]) => types.includes(node.comfyClass)) ?? [];
  const { color } = globalThis.LGraphCanvas?.node_colors?.[name] ?? {};
  if (!color || !setting("MMDiT.Nodes.Colours")) return;
  node.color = color;
  unlessSaved(node, () => (node.color = undefined));
}

/** Take back what a new node was given, before it is told what a saved one holds. */
function unlessSaved(node, takeBack) {
  const { configure } = node;
  let saved = false;
  node.configure = function (...values) {
    if (!saved) takeBack();
    saved = true;
    return configure.apply(this, values);
  };
}

function blocksWidget(node, name, [, options]) {
  const usual = String(options?.default ?? "");
  if (!setting("MMDiT.Nodes.Strip")) return app.widgets.STRING(node, name, ["STRING", { default: usual }], app);
  let text = usual;
  const value = { get: () => text, set: (now) => (text = now) };
  const widget = addStrip({ node, about: node, name, value });
  return { widget, minWidth: 320, minHeight: widget.computeSize(320)[1] };
}

/**
 * Put a strip on a node. Args: about, the node whose blocks it chooses: another one where the input was promoted out
 * of a subgraph; value, { get, set } of the text.
 */
function addStrip({ node, about, name, value }) {
  const kind = STRIPS[about.comfyClass];
  const element = document.createElement("div");
  let show = () => {};
  const height = kind.levels ? HEIGHT.levels : HEIGHT.plain;
  // As high as it will be: its style sheet comes later, and a node must not grow under someone's hand.
  element.style.minHeight = `${height - 2 * MARGIN}px`;
  const widget = addElement(node, name, TYPE, element, () => height, {
    getValue: value.get,
    setValue(now) {
      value.set(String(now ?? ""));
      show(value.get());
    },
    margin: MARGIN,
  });
  if (!here.has(BLOCKS)) show = plainField(element, widget);
  withModule(BLOCKS, ({ drawStrip }) => (show = drawStrip({ node, about, widget, element, kind })));
  return widget;
}

/** What stands in a strip's place until it is here. Returns: a function that shows a text. */
function plainField(element, widget) {
  const field = document.createElement("input");
  field.ariaLabel = widget.name;
  field.value = widget.value;
  field.addEventListener("input", () => (widget.value = field.value));
  element.append(field);
  return (text) => {
    if (field.value !== text) field.value = text;
  };
}

/** Put a widget of HTML on a node, as high as `height()` says in both renderers. */
export function addElement(node, name, type, element, height, options) {
  const widget = node.addDOMWidget(name, type, element, { hideOnZoom: false, ...options });
  widget.computeSize = (width) => [width, height()];
  // It would take all spare height in Nodes 2.0.
  widget.computeLayoutSize = undefined;
  // An open side panel would shrink it in the middle of a click.
  Object.defineProperty(widget, "width", { get: () => undefined, set: () => {} });
  return widget;
}

/**
 * Draw strips on a subgraph's node, too, for the inputs that it promotes: the host draws promoted text areas only, and
 * leaves other widgets that are HTML blank.
 */
function drawPromoted(node) {
  const before = node.createPromotedHostWidget;
  node.createPromotedHostWidget = function (input, id, source) {
    const settled = this.graph?.getNodeById(this.id) === this; // before that its id is another
    const stored = source.type === TYPE && settled ? this._projectPromotedWidget?.(input) : null;
    if (!stored) return before?.call(this, input, id, source);
    const value = { get: () => String(stored.value ?? ""), set: (now) => (stored.value = now) };
    return addStrip({ node: this, about: source.node, name: input.name, value });
  };
}
