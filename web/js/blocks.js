// The blocks inputs as strips: a widget in the place of the plain text, with the same value at the same position.
//
// Where this script does not load, the inputs stay the plain text fields that the server describes.

import { showMenu } from "./actions.js";
import { refresh, watch, watched } from "./context.js";
import { addHtml, addStyles, api, app, forget, remember } from "./host.js";
import { listenForReports } from "./reports.js";
import { BlockStrip } from "./strip.js";

const TYPE = "MMDIT_BLOCKS";
const INPUT = "blocks";
// Node -> what it does to a block, in a word; levels: its blocks may have strengths.
const NODES = {
  BlockSkip: { action: "skip" },
  TextBoost: { action: "boost", levels: true },
  TextDisable: { action: "disable" },
  BlockPrompt: { action: "prompt" },
  BlockAnalysis: { action: "analyse" },
};
const HEIGHT = { plain: 78, levels: 94 }; // pixels in the classic renderer: that of strip.css and both margins
const MARGIN = 5;

addStyles(new URL("../css/strip.css", import.meta.url));

app.registerExtension({
  name: "mmdit.blocks",
  getCustomWidgets: () => ({ [TYPE]: blocksWidget }),
  beforeRegisterNodeDef(_, definition) {
    const input = NODES[definition.name] && definition.input?.required?.[INPUT];
    if (input) input[1] = { ...input[1], widgetType: TYPE };
  },
  nodeCreated(node) {
    if (node.subgraph) drawPromoted(node);
  },
  refreshComboInNodes: forget,
  afterConfigureGraph: watched,
  setup() {
    api.addEventListener("graphChanged", watched);
    listenForReports(watched);
  },
});

function blocksWidget(node, name, [, options]) {
  let text = String(options?.default ?? "");
  const value = { get: () => text, set: (now) => (text = now) };
  const widget = addStrip({ node, about: node, name, value });
  return { widget, minWidth: 320, minHeight: widget.computeSize(320)[1] };
}

/**
 * Put a strip on a node. Args: about, the node whose blocks it chooses: another one where the input was promoted out
 * of a subgraph; value, { get, set } of the text.
 */
function addStrip({ node, about, name, value }) {
  const kind = NODES[about.comfyClass];
  const strip = new BlockStrip({
    ...kind,
    label: name,
    changed(text, done) {
      widget.value = text;
      if (done) remember();
    },
    menu: (x, y) => void showMenu(about, strip, x, y),
  });
  const height = kind.levels ? HEIGHT.levels : HEIGHT.plain;
  const widget = addHtml(node, name, TYPE, strip.element, () => height, {
    getValue: value.get,
    setValue(now) {
      const text = String(now ?? "");
      value.set(text);
      if (text !== strip.text) strip.setText(text);
    },
    margin: MARGIN,
  });
  strip.setText(value.get());
  watch({ node, about, widget, strip }, refresh);
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
