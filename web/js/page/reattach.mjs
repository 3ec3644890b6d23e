// Keeps a widget's element in the page in Nodes 2.0. ComfyUI inserts a widget's element when it first draws the node, and
// keeps the drawn element when undo creates the node again: the old node's element would stay in place.

import { app, drawnAsHtml } from "./frontend.mjs";

const FRAMES = 20; // to wait until a new node is drawn

/** Returns: a function that replaces the old element, if there is one, by this one. */
export function keepAttached(node, name, element) {
  element.dataset.widget = name;
  return function attach(frames = FRAMES) {
    if (element.isConnected || !drawnAsHtml() || app.canvas?.graph?.getNodeById(node.id) !== node) return;
    const others = [...document.querySelectorAll(`[data-node-id="${node.id}"] [data-widget]`)];
    const old = others.find((other) => other.dataset.widget === name);
    if (old) old.replaceWith(element);
    else if (frames > 0) requestAnimationFrame(() => attach(frames - 1));
  };
}
