// A note below a node's widgets, in both renderers; it is never saved.

import { addHtml, addStyles, make } from "../page/frontend.mjs";

await addStyles("note.css");

const LINE = 15; // pixels
const MARGIN = 4;
const PADDING = 10; // left and right, as in note.css
const MAX_LINES = 8; // of a text; the tooltip has all of it
const WRAPPED = 1.1; // a line that breaks between words is not full

const ruler = document.createElement("canvas").getContext("2d");

export class Note {
  constructor(node, name) {
    this.node = node;
    this.name = name;
    this.widget = null;
    this.heightBefore = 0; // of the node, without the note
  }

  /** Args: content, elements or texts; lines, the maximum number; kind, a CSS class. */
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

  /** Show a text, which keeps its line breaks, as high as it needs at the node's width. */
  showText(text, kind = "") {
    ruler.font = `11px ${getComputedStyle(document.body).fontFamily}`;
    const width = this.node.size[0] - 2 * (MARGIN + PADDING);
    const wrapped = (line) => Math.ceil((WRAPPED * ruler.measureText(line).width) / width) || 1;
    const lines = text.split("\n").reduce((sum, line) => sum + wrapped(line), 0);
    this.show([text], Math.min(MAX_LINES, lines), kind);
  }

  hide() {
    if (!this.widget) return;
    const { node, widget } = this;
    // The classic renderer grows a node to fit and never shrinks it.
    const tight = node.size[1] <= node.computeSize()[1] + 1;
    widget.onRemove?.();
    node.widgets.splice(node.widgets.indexOf(widget), 1);
    this.widget = null;
    this.lines = 0;
    const height = Math.max(this.heightBefore, node.computeSize()[1]);
    if (node.graph && tight && height < node.size[1]) node.setSize([node.size[0], height]);
    this._redraw(1);
  }

  /** The classic renderer grows a node while drawing it, so the new height shows in the drawing after that. */
  _redraw(times) {
    this.node.setDirtyCanvas?.(true, true);
    if (times > 1) requestAnimationFrame(() => requestAnimationFrame(() => this._redraw(times - 1)));
  }

  _add() {
    if (this.node.graph) this.heightBefore = this.node.size[1];
    const element = make("div", "");
    element.setAttribute("role", "note");
    const height = () => this.lines * LINE + 2 * MARGIN;
    // The last widget: an unsaved one in the middle would shift the saved values of those after it.
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
