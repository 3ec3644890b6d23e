// The blocks inputs as strips: a widget in the place of the plain text, with the same value at the same position.

import { showMenu } from "./actions.mjs";
import { refresh, watch } from "./context.mjs";
import { passToCanvas, remember } from "./host.mjs";
import { BlockStrip } from "./strip.mjs";

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
