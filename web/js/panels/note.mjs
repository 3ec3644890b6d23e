// Words at the end of a node, in both renderers; they are never saved.

import { addHtml, addStyles, make } from "../page/frontend.mjs";

await addStyles("note.css");

const LINE = 15; // pixels
const MARGIN = 4;

export class Note {
  constructor(node, name) {
    this.node = node;
    this.name = name;
    this.widget = null;
    this.before = 0; // the node's height without it
  }

  /** Args: content, elements or texts; lines, how many at most. */
  show(content, lines, kind = "") {
    this.widget ??= this._add();
    const { element } = this.widget;
    element.className = `mmdit-note ${kind}`;
    element.style.maxHeight = `${lines * LINE}px`;
    element.replaceChildren(...content);
    element.title = element.textContent;
    if (lines === this.lines) return;
    this.lines = lines;
    this._redraw(2);
  }

  hide() {
    if (!this.widget) return;
    const { node, widget } = this;
    // In the classic renderer a node grows by itself, and never shrinks.
    const tight = node.size[1] <= node.computeSize()[1] + 1;
    widget.onRemove?.();
    node.widgets.splice(node.widgets.indexOf(widget), 1);
    this.widget = null;
    this.lines = 0;
    const height = Math.max(this.before, node.computeSize()[1]);
    if (node.graph && tight && height < node.size[1]) node.setSize([node.size[0], height]);
    this._redraw(1);
  }

  /** In the classic renderer a node that is too low grows while it is drawn: that is seen in the next drawing. */
  _redraw(times) {
    this.node.setDirtyCanvas?.(true, true);
    if (times > 1) requestAnimationFrame(() => requestAnimationFrame(() => this._redraw(times - 1)));
  }

  _add() {
    if (this.node.graph) this.before = this.node.size[1];
    const element = make("div", "");
    element.setAttribute("role", "note");
    const height = () => this.lines * LINE + 2 * MARGIN;
    // The last of the widgets: one that is not saved would shift those behind it.
    const widget = addHtml(this.node, this.name, "MMDIT_NOTE", element, height, {
      getValue: () => "",
      setValue: () => {},
      serialize: false,
      margin: MARGIN,
    });
    widget.serialize = false;
    return widget;
  }
}
