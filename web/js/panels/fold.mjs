// Advanced inputs in the classic renderer, folded as Nodes 2.0 folds them. Only rows are hidden: every input stays on the
// node, and the row of one that is linked or has another value than its default stays in view.

import { after, app, drawnAsHtml, isLinked } from "../page/frontend.mjs";
import { words } from "../words.mjs";

const ALWAYS = "Comfy.Node.AlwaysShowAdvancedWidgets";
const TEXTS = {
  en: { more: (count) => `Show ${count} advanced inputs`, fewer: "Hide advanced inputs" },
  zh: { more: (count) => `显示 ${count} 个高级输入`, fewer: "隐藏高级输入" },
};

export function nodeCreated(node) {
  const { required = {}, optional = {} } = node.constructor.nodeData?.input ?? {};
  const options = (name) => (required[name] ?? optional[name])?.[1];
  const advanced = (node.widgets ?? []).filter(({ name }) => options(name)?.advanced);
  if (advanced.length < 2) return; // a button in place of one row saves nothing
  const standard = (widget) => widget.value === (options(widget.name).default ?? options(widget.name).values?.[0]);
  let opened = false; // while the height without this module is computed
  const folds = () => !drawnAsHtml() && !opened && !node.showAdvanced && !app.extensionManager?.setting?.get(ALWAYS);
  const folded = (widget) => folds() && !widget.replaced && standard(widget) && !isLinked(node, widget.name);
  for (const widget of advanced) hideWhile(widget, () => folded(widget));
  const button = node.addWidget("button", "advanced", null, toggle, { serialize: false, canvasOnly: true });
  button.serialize = false;
  hideWhile(button, () => drawnAsHtml() || opened || (folds() && !advanced.some(folded)));
  Object.defineProperty(button, "label", {
    get: () => (folds() ? words(TEXTS).more(advanced.filter(folded).length) : words(TEXTS).fewer),
    set: () => {},
  });

  function height() {
    return node.computeSize()[1];
  }

  function toggle() {
    node.showAdvanced = !node.showAdvanced;
    node.setSize([node.size[0], height()]);
    node.setDirtyCanvas(true, true);
  }

  /** Shrink a node that is as high as without this module. */
  function tighten() {
    if (!folds()) return;
    opened = true;
    const full = height();
    opened = false;
    if (node.size[1] >= full) node.setSize([node.size[0], node.size[1] - full + height()]);
  }
  tighten();
  after(node, "onConfigure", tighten);
}

/** Hide a widget's row while holds() is true, or while an earlier call or another script hides it. */
export function hideWhile(widget, holds) {
  const before = Object.getOwnPropertyDescriptor(widget, "hidden")?.get;
  let hidden = before ? false : Boolean(widget.hidden);
  Object.defineProperty(widget, "hidden", {
    configurable: true,
    enumerable: true,
    get: () => hidden || Boolean(before?.call(widget)) || holds(),
    set: (value) => (hidden = value),
  });
}
