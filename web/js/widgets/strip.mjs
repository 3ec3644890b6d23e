// The strip: one cell for each block of a model, a text field, and a line of text below.
//
// It does not depend on nodes: its state is set from outside, and changes by the user are reported through `changed`.

import { Blocks, plain, read, write } from "./grammar.mjs";
import { footOf } from "./foot.mjs";
import { make } from "../page/frontend.mjs";
import { listenToKeys } from "./keys.mjs";
import { clamped, height } from "./bar.mjs";
import { listenToPointer } from "./pointer.mjs";
import { words } from "../words.mjs";

const DEFAULT_BLOCKS = new Blocks(24); // a guess, drawn while the model is unknown
const MAX_ROW = 40; // cells

let strips = 0;

export class BlockStrip {
  /**
   * Options: element, to draw in; label; action of the node on a block ("skip", "boost", ...), for colour and words; levels,
   * true if blocks have strengths; changed(text, done), called after each change, done = false during a gesture;
   * menu(x, y), called to open the menu.
   */
  constructor({ element, label, action, levels = false, changed, menu }) {
    Object.assign(this, { element, label, action, levels, changed, menu });
    this.text = "";
    this.blocks = DEFAULT_BLOCKS;
    this.known = false;
    this.chosen = new Map();
    this.errors = [];
    this.kept = []; // entries of the text that no cell shows
    this.defaultStrength = 1.5; // of a block without its own
    this.effects = null; // block -> measured effect
    this.preset = null; // { name, chosen }: shown instead of the text
    this.linked = false;
    this.cursor = 0;
    this.anchor = null;
    this.hovered = null;
    this.id = `mmdit-strip-${(strips += 1)}`;
    this._build();
    listenToPointer(this);
    listenToKeys(this);
    this._layOut();
  }

  // State

  setText(text) {
    this.text = text;
    this._read();
    this.draw();
  }

  /** Args: blocks, a Blocks, or null if the model is unknown. */
  setBlocks(blocks) {
    const now = blocks ?? DEFAULT_BLOCKS;
    if (JSON.stringify(now) === JSON.stringify(this.blocks) && Boolean(blocks) === this.known) return;
    this.blocks = now;
    this.known = Boolean(blocks);
    this.cursor = Math.min(this.cursor, now.total - 1);
    this.anchor = null;
    this._layOut();
    this._read();
    this.draw();
  }

  /** Args: any of label, defaultStrength, effects, preset, linked. */
  show(state) {
    Object.assign(this, state);
    this.name.textContent = this.label;
    this.draw();
  }

  get editable() {
    return !this.linked && !this.preset;
  }

  /** The chosen blocks as drawn: block -> own strength or null. */
  get shown() {
    return this.preset?.chosen ?? this.chosen;
  }

  // Actions of the user

  /** Set the text, such as a typed one; in plain signs once it is complete. */
  write(text, done = true) {
    this.setText(done ? plain(text) : text);
    this.changed(this.text, done);
  }

  /** Choose exactly these blocks; entries that no cell shows stay in the text. */
  choose(chosen, done = true) {
    // Exceptions alone would mean all other blocks.
    const empty = this.kept.length && this.kept.every((part) => part.startsWith("!")) ? "none" : "";
    const text = [write(chosen, this.blocks) || empty, ...this.kept].filter(Boolean).join(", ");
    if (text !== this.text) this.write(text, done);
    else if (done) this.changed(text, true);
  }

  /** Switch all blocks from one to another, inclusive, on or off. */
  paint(from, to, on, done = true) {
    const chosen = new Map(this.chosen);
    for (let block = Math.min(from, to); block <= Math.max(from, to); block += 1) {
      if (!on) chosen.delete(block);
      else if (!chosen.has(block)) chosen.set(block, null);
    }
    this.choose(chosen, done);
  }

  toggle(block, done = true) {
    this.paint(block, block, !this.chosen.has(block), done);
  }

  strengthOf(block) {
    return this.shown.get(block) ?? this.defaultStrength;
  }

  /** Set a block's own strength. */
  setStrength(block, strength, done = true) {
    this.choose(new Map(this.chosen).set(block, clamped(strength)), done);
  }

  invert() {
    const all = Array.from({ length: this.blocks.total }, (_, block) => block);
    this.choose(new Map(all.filter((block) => !this.chosen.has(block)).map((block) => [block, null])));
  }

  moveTo(block) {
    this.cursor = Math.max(0, Math.min(this.blocks.total - 1, block));
    this.hovered = this.cursor;
    this.draw();
  }

  hover(block) {
    if (block === this.hovered) return;
    this.hovered = block;
    this._drawFoot();
  }

  // Drawing

  /** Update everything that is visible or read by a screen reader. */
  draw() {
    const { element, shown } = this;
    element.classList.toggle("unknown", !this.known);
    element.classList.toggle("locked", !this.editable);
    element.classList.toggle("wrong", this.errors.length > 0 && !this.preset);
    element.inert = this.linked;
    const text = words();
    const value = this.preset ? "" : this.text;
    if (this.field.value !== value) this.field.value = value;
    this.field.readOnly = !this.editable;
    this.field.placeholder = this.linked ? text.fromLink : this.preset ? text.fromPreset : text.nothing;
    this.field.setAttribute("aria-invalid", String(this.errors.length > 0));
    this.list.setAttribute("aria-readonly", String(!this.editable));
    const count = text.chosen(this.label, shown.size, this.blocks.total);
    this.list.setAttribute("aria-label", this.known ? count : `${count} · ${text.guess(this.blocks.total)}`);
    this.list.setAttribute("aria-activedescendant", this._cellId(this.cursor));
    const most = this.effects ? Math.max(...this.effects.filter(Number.isFinite), 0) : 0;
    this.cells.forEach((cell, block) => {
      const on = shown.has(block);
      cell.setAttribute("aria-selected", String(on));
      cell.setAttribute("aria-label", this.describe(block));
      cell.classList.toggle("cursor", block === this.cursor);
      cell.style.setProperty("--level", on ? (this.levels ? height(this.strengthOf(block)) : 1) : 0);
      const effect = this.effects?.[block];
      cell.classList.toggle("measured", Number.isFinite(effect));
      // Square root: otherwise one block with a large effect leaves the others without colour.
      if (most > 0 && Number.isFinite(effect)) cell.style.setProperty("--heat", Math.sqrt(effect / most));
    });
    this._drawFoot();
  }

  /** A block in words: its number, whether it is chosen, its strength, its measured effect. */
  describe(block) {
    const { name, own } = this.blocks.kindOf(block);
    const text = words();
    const action = text[this.action];
    const parts = [this.blocks.sections.length > 1 ? text.blockOf(block, name, own) : text.block(block)];
    if (this.shown.has(block)) parts.push(this.levels ? text.strength(action, this.strengthOf(block)) : action);
    const effect = this.effects?.[block];
    if (Number.isFinite(effect)) parts.push(text.effect(Number(effect.toPrecision(3))));
    return parts.join(" · ");
  }

  _read() {
    const found = read(this.text, this.blocks, { strengths: this.levels });
    this.chosen = found.chosen;
    this.kept = found.errors.map((error) => error.kept);
    this.errors = found.errors.filter((error) => this.known || error.kind !== "beyond");
  }

  /** What is wrong with the text: each part that cannot be read, then all blocks that this model does not have. */
  _wrong() {
    const text = words();
    const absent = this.errors.filter(({ kind }) => kind === "beyond");
    const wrong = this.errors.filter((error) => !absent.includes(error)).map((error) => text.wrong(error));
    const numbers = absent.map(({ kept }) => kept.replace(/^! *|:.*/g, ""));
    return absent.length ? [...wrong, text.beyond(numbers.join(", "), this.blocks)] : wrong;
  }

  /** The line below: the block under the pointer, else the preset, else the errors, else the kinds of blocks. */
  _drawFoot() {
    const { foot } = this;
    const pointed = this.hovered !== null && this.hovered < this.blocks.total;
    const wrong = !pointed && this.element.classList.contains("wrong");
    const text =
      (pointed && this.describe(this.hovered)) ||
      (this.preset && words().preset(this.preset.name)) ||
      (wrong && this._wrong().join("\n"));
    foot.classList.toggle("words", Boolean(text));
    foot.classList.toggle("error", wrong);
    foot.replaceChildren(...(text ? [text] : footOf(this.blocks, this.known, this.rows.length)));
    foot.title = foot.childElementCount ? "" : foot.textContent;
  }

  _build() {
    this.element.className = `mmdit-blocks ${this.action}`;
    this.element.classList.toggle("levels", this.levels);
    this.name = make("label", "mmdit-name", this.label);
    this.field = make("input", "mmdit-text");
    Object.assign(this.field, { type: "text", id: `${this.id}-text`, spellcheck: false, autocomplete: "off" });
    this.name.htmlFor = this.field.id;
    this.field.addEventListener("input", () => this.write(this.field.value, false));
    this.field.addEventListener("change", () => this.write(this.field.value));
    this.list = make("div", "mmdit-strip");
    this.list.setAttribute("role", "listbox");
    this.list.setAttribute("aria-multiselectable", "true");
    this.list.setAttribute("aria-orientation", "horizontal");
    this.list.tabIndex = 0;
    this.list.title = ""; // otherwise the text field's tooltip covers the cells
    this.foot = make("div", "mmdit-foot");
    this.element.replaceChildren(this.name, this.field, this.list, this.foot);
  }

  /** Create the cells: two kinds of blocks in separate rows, more kinds with lines between them, and long rows split. */
  _layOut() {
    const { sections, total } = this.blocks;
    const half = sections.length === 2 ? sections[0].count : Math.ceil(total / 2);
    let spans = [[0, total, ""]]; // first, end, title
    if (sections.length === 2) spans = [[0, half, sections[0].name[0]], [half, total, sections[1].name[0]]];
    else if (total > MAX_ROW) spans = [[0, half, "0"], [half, total, String(half)]];
    this.cells = [];
    this.rows = spans.map(([first, end, title]) => {
      const row = make("div", "mmdit-row");
      row.setAttribute("role", "group");
      row.setAttribute("aria-label", words().row(first, end - 1));
      row.dataset.title = title;
      for (let block = first; block < end; block += 1) {
        const cell = make("div", "mmdit-cell");
        cell.id = this._cellId(block);
        cell.setAttribute("role", "option");
        const { index, own } = this.blocks.kindOf(block);
        cell.classList.toggle("opens", index > 0 && own === 0 && block > first);
        row.append(cell);
        this.cells.push(cell);
      }
      return { row, first, end };
    });
    this.list.replaceChildren(...this.rows.map(({ row }) => row));
    this.element.classList.toggle("two", this.rows.length > 1);
  }

  _cellId(block) {
    return `${this.id}-${block}`;
  }
}
