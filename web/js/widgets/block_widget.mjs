// The blocks inputs as strips: a widget in the place of the plain text, with the same value at the same position.

import { refresh, watch, watched } from "./strip_state.mjs";
import { addStyles, api, passToCanvas, remember } from "../page/frontend.mjs";
import { listenForReports } from "./reports.mjs";
import { BlockStrip } from "./strip.mjs";

export { watched } from "./strip_state.mjs";

api.addEventListener("graphChanged", watched);
listenForReports(watched);
await addStyles("strip.css");

/**
 * Draw the strip of a widget into its element. Args: about, the node whose blocks it chooses; kind, what that does to
 * them, as mmdit.js says. Returns: a function that shows another text.
 */
export function drawStrip({ node, about, widget, element, kind }) {
  const strip = new BlockStrip({
    ...kind,
    element,
    label: widget.name,
    changed(text, done) {
      widget.value = text;
      if (done) remember();
    },
    menu: (x, y) => void showMenu(about, strip, x, y),
  });
  passToCanvas(element);
  strip.setText(widget.value);
  watch({ node, about, widget, strip }, refresh);
  return (text) => {
    if (text !== strip.text) strip.setText(text);
  };
}

/** The menu comes with the first right click. */
async function showMenu(...where) {
  try {
    (await import("./strip_menu.mjs")).showMenu(...where);
  } catch (error) {
    console.error("MMDiT: no menu, a script did not load.", error);
  }
}
