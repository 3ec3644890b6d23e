// Where a strip lies in the page, in Nodes 2.0. The host puts a widget's element into its node once and keeps the place
// when the node is made anew, as by undo: then the old node's strip would stay there. And a side panel that shows the
// widget takes the element along, for good.

import { app, drawnAsHtml } from "./host.js";

const FRAMES = 20; // to wait for the page to draw a node that was just made

/** Put a strip's element back where it belongs whenever it is nowhere; the function returned looks at once. */
export function keepAtHome(node, name, element) {
    element.dataset.widget = name;
    let home = null;
    let left = 0;

    const look = () => {
        if (!drawnAsHtml() || app.canvas?.graph?.getNodeById(node.id) !== node) return;
        const place = `[data-node-id="${node.id}"]`;
        if (element.isConnected) {
            if (element.closest(place)) home = element.parentElement;
            return;
        }
        const strips = [...document.querySelectorAll(`${place} .mmdit-blocks`)];
        const stale = strips.find((other) => other.dataset.widget === name);
        const free = home?.isConnected && !home.firstElementChild ? home : stale?.parentElement;
        if (free) free.replaceChildren(element);
        else if ((left -= 1) > 0) requestAnimationFrame(look);
    };
    const begin = () => {
        left = FRAMES;
        look();
    };
    new ResizeObserver(begin).observe(element); // tells when it is taken away
    return begin;
}
