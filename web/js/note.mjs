// Words at the end of a node, in both renderers; they are never saved.

import { addHtml, make } from "./host.mjs";

const LINE = 15; // pixels
const MARGIN = 4;

export class Note {
  constructor(node, name) {
    this.node = node;
    this.name = name;
    this.widget = null;
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
    this._fit();
  }

  hide() {
    if (!this.widget) return;
    const { node, widget } = this;
    widget.onRemove?.();
    node.widgets.splice(node.widgets.indexOf(widget), 1);
    this.widget = null;
    this.lines = 0;
    this._fit();
  }

  /** In the classic renderer a node grows by itself, and never shrinks. */
  _fit() {
    const { node } = this;
    const height = (this.lines ? this.lines * LINE + 2 * MARGIN + 4 : 0) - (this.grown ?? 0);
    this.grown = (this.grown ?? 0) + height;
    if (node.graph && height < 0) node.setSize([node.size[0], node.size[1] + height]);
    node.setDirtyCanvas?.(true, true);
  }

  _add() {
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
