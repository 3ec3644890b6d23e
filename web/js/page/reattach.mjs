// Keeps a strip's element in the page in Nodes 2.0. ComfyUI inserts a widget's element when it first draws the node, and
// keeps the drawn element when undo creates the node again: the old node's strip would stay in place.

import { app, drawnAsHtml } from "./frontend.mjs";

const FRAMES = 20; // to wait until a new node is drawn

/** Returns: a function that replaces an old strip's element, if there is one, by this one. */
export function keepAttached(node, name, element) {
  element.dataset.widget = name;
  return function attach(frames = FRAMES) {
    if (element.isConnected || !drawnAsHtml() || app.canvas?.graph?.getNodeById(node.id) !== node) return;
    const strips = [...document.querySelectorAll(`[data-node-id="${node.id}"] .mmdit-blocks`)];
    const old = strips.find((other) => other.dataset.widget === name);
    if (old) old.replaceWith(element);
    else if (frames > 0) requestAnimationFrame(() => attach(frames - 1));
  };
}
