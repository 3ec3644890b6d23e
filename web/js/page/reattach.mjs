// Where a strip lies in the page, in Nodes 2.0: the host puts a widget's element into its node when it first draws the
// node, and keeps what it has drawn when the node is made anew, as by undo. Then the old node's strip would stay there.

import { app, drawnAsHtml } from "./frontend.mjs";

const FRAMES = 20; // to wait for a node that was just made to be drawn

/** Returns a function that puts the strip's element into the place of an old one, where there is one. */
export function keepAtHome(node, name, element) {
  element.dataset.widget = name;
  return function look(frames = FRAMES) {
    if (element.isConnected || !drawnAsHtml() || app.canvas?.graph?.getNodeById(node.id) !== node) return;
    const strips = [...document.querySelectorAll(`[data-node-id="${node.id}"] .mmdit-blocks`)];
    const old = strips.find((other) => other.dataset.widget === name);
    if (old) old.replaceWith(element);
    else if (frames > 0) requestAnimationFrame(() => look(frames - 1));
  };
}
