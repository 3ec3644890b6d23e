// The `blocks` input as a strip: replaces the text widget, with the same value at the same position.

import { refresh, updateOnChange, updateStrips } from "./strip_state.mjs";
import { addStyles, api, forwardToCanvas, recordUndo } from "../page/frontend.mjs";
import { listenForReports } from "./reports.mjs";
import { BlockStrip } from "./strip.mjs";

export { nodeCreated } from "../panels/made_for.mjs";
export { updateStrips } from "./strip_state.mjs";

api.addEventListener("graphChanged", updateStrips);
listenForReports(updateStrips);
await addStyles("strip.css");

/**
 * Draw the strip of a widget into its element. Args: about, the node whose blocks it chooses; kind, its entry of STRIPS in
 * mmdit.js. Returns: a function that shows another text.
 */
export function drawStrip({ node, about, widget, element, kind }) {
  const strip = new BlockStrip({
    ...kind,
    element,
    label: widget.name,
    changed(text, done) {
      widget.value = text;
      if (done) recordUndo();
    },
    menu: (x, y) => void showMenu(about, strip, x, y),
  });
  // ComfyUI hides a linked HTML widget, in older frontends with a hole in its place; the strip shows the linked list.
  Object.defineProperty(widget, "connectionSuppressed", { get: () => false, set: () => {} });
  widget.isVisible = () => !widget.hidden && node.isWidgetVisible(widget);
  forwardToCanvas(element);
  strip.setText(widget.value);
  // ComfyUI labels a widget as soon as it is made; a frame later would show the English name first.
  queueMicrotask(() => strip.show({ label: widget.label ?? widget.name }));
  updateOnChange({ node, about, widget, strip }, refresh);
  return (text) => {
    if (text !== strip.text) strip.setText(text);
  };
}

/** Open the menu; its module is loaded with the first right click. */
async function showMenu(...where) {
  try {
    (await import("./strip_menu.mjs")).showMenu(...where);
  } catch (error) {
    console.error("MMDiT: the menu's script did not load.", error);
  }
}
