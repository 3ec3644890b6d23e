// The strip: one cell for each block of a model, a text field beside it, a line of words below.
//
// It knows nothing of nodes: what it shows is set, what a person does is told through `changed`.

import { Blocks, read, write } from "./grammar.mjs";
import { make } from "../page/frontend.mjs";
import { listenToKeys } from "./keys.mjs";
import { height, held } from "./bar.mjs";
import { listenToPointer } from "./pointer.mjs";
import { words } from "../words.mjs";

const UNKNOWN = new Blocks(24); // drawn until the model is known
const LONGEST_ROW = 40; // cells
const RULER_STEPS = [1, 2, 4, 5, 8, 10];
const MOST_MARKS = 8;

let strips = 0;

export class BlockStrip {
  /**
   * Options: element, to draw in; label; action, what the node does to a block ("skip", "boost", ...), for colour and words; levels,
   * whether blocks have strengths; changed(text, done), after each change, done when it is complete; menu(x, y).
   */
  constructor({ element, label, action, levels = false, changed, menu }) {
    Object.assign(this, { element, label, action, levels, changed, menu });
    this.text = "";
    this.blocks = UNKNOWN;
    this.known = false;
    this.chosen = new Map();
    this.errors = [];
    this.beyond = []; // parts of the text that name blocks which are not drawn, while the model is unknown
    this.usual = 1.5; // the strength of a block that has none of its own
    this.effects = null; // block -> measured effect
    this.preset = null; // { name, chosen }: shown in place of the text
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

  // What it shows

  setText(text) {
    this.text = text;
    this._read();
    this.draw();
  }

  /** Args: blocks, a Blocks, or null where the model is not known. */
  setBlocks(blocks) {
    const now = blocks ?? UNKNOWN;
    const same = now.double === this.blocks.double && now.single === this.blocks.single;
    if (same && Boolean(blocks) === this.known) return;
    this.blocks = now;
    this.known = Boolean(blocks);
    this.cursor = Math.min(this.cursor, now.total - 1);
    this.anchor = null;
    this._layOut();
    this._read();
    this.draw();
  }

  /** Any of label, usual, effects, preset, linked. */
  show(state) {
    Object.assign(this, state);
    this.name.textContent = this.label;
    this.draw();
  }

  get editable() {
    return !this.linked && !this.preset;
  }

  /** The choice that is drawn: block -> own strength or null. */
  get shown() {
    return this.preset?.chosen ?? this.chosen;
  }

  // What a person does

  /** Take a text as it is, such as a typed one. */
  write(text, done = true) {
    this.setText(text);
    this.changed(text, done);
  }

  /** Choose exactly these blocks; parts of the text about blocks that cannot be drawn yet stay. */
  choose(chosen, done = true) {
    const text = [write(chosen, this.blocks), ...this.beyond].filter(Boolean).join(", ");
    if (text !== this.text) this.write(text, done);
    else if (done) this.changed(text, true);
  }

  /** Switch the blocks between two, both included, on or off. */
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
    return this.shown.get(block) ?? this.usual;
  }

  /** Give a block a strength of its own. */
  setStrength(block, strength, done = true) {
    this.choose(new Map(this.chosen).set(block, held(strength)), done);
  }

  invert() {
    const rest = Array.from({ length: this.blocks.total }, (_, block) => block);
    this.choose(new Map(rest.filter((block) => !this.chosen.has(block)).map((block) => [block, null])));
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

  /** Bring everything that is seen or read aloud up to date. */
  draw() {
    const { element, shown } = this;
    element.classList.toggle("unknown", !this.known);
    element.classList.toggle("locked", !this.editable);
    element.classList.toggle("wrong", this.errors.length > 0 && !this.linked && !this.preset);
    element.inert = this.linked;
    const say = words();
    const text = this.editable ? this.text : "";
    if (this.field.value !== text) this.field.value = text;
    this.field.readOnly = !this.editable;
    this.field.placeholder = this.linked ? say.fromLink : this.preset ? say.fromPreset : say.nothing;
    this.field.setAttribute("aria-invalid", String(this.errors.length > 0));
    this.list.setAttribute("aria-readonly", String(!this.editable));
    this.list.setAttribute("aria-label", say.chosen(this.label, shown.size, this.blocks.total));
    this.list.setAttribute("aria-activedescendant", this._cellId(this.cursor));
    const most = this.effects ? Math.max(...this.effects.filter(Number.isFinite), 0) : 0;
    this.cells.forEach((cell, block) => {
      const on = !this.linked && shown.has(block);
      cell.setAttribute("aria-selected", String(on));
      cell.setAttribute("aria-label", this.describe(block));
      cell.classList.toggle("cursor", block === this.cursor);
      cell.style.setProperty("--level", on ? (this.levels ? height(this.strengthOf(block)) : 1) : 0);
      const effect = this.effects?.[block];
      cell.classList.toggle("measured", Number.isFinite(effect));
      // The square root: one block with a large effect would leave the others without any colour.
      if (most > 0 && Number.isFinite(effect)) cell.style.setProperty("--heat", Math.sqrt(effect / most));
    });
    this._drawFoot();
  }

  /** A block in words: its number, whether it is chosen, its strength, its measured effect. */
  describe(block) {
    const { double, single } = this.blocks;
    const say = words();
    const action = say[this.action];
    const parts = [
      !single ? say.block(block) : block < double ? say.doubleBlock(block, block) : say.singleBlock(block, block - double),
    ];
    if (this.shown.has(block)) parts.push(this.levels ? say.strength(action, this.strengthOf(block)) : action);
    const effect = this.effects?.[block];
    if (Number.isFinite(effect)) parts.push(say.effect(Number(effect.toPrecision(3))));
    return parts.join(" · ");
  }

  _read() {
    const found = read(this.text, this.blocks, { strengths: this.levels });
    const waiting = this.known ? [] : found.errors.filter((error) => error.kind === "beyond");
    this.chosen = found.chosen;
    this.beyond = waiting.map((error) => error.part);
    this.errors = found.errors.filter((error) => !waiting.includes(error));
  }

  /** The line below: the block under the pointer, else the preset, else what is wrong, else the ruler. */
  _drawFoot() {
    const { foot } = this;
    const pointed = this.hovered !== null && this.hovered < this.blocks.total;
    const wrong = !pointed && this.element.classList.contains("wrong");
    const text =
      (pointed && this.describe(this.hovered)) ||
      (this.preset && words().preset(this.preset.name)) ||
      (wrong && words().wrong(this.errors[0], this.blocks));
    foot.classList.toggle("words", Boolean(text));
    foot.classList.toggle("error", wrong);
    foot.title = text || "";
    if (text) foot.textContent = text;
    else foot.replaceChildren(...this._ruler());
  }

  /** Numbers under some cells of a single row; of two rows, what they are. */
  _ruler() {
    if (this.rows.length > 1) {
      const { double, single, total } = this.blocks;
      return [single ? words().kinds(double, total) : `0–${total - 1}`];
    }
    const step = RULER_STEPS.find((each) => this.blocks.total / each <= MOST_MARKS) ?? 10;
    return this.cells.flatMap((_, block) => {
      if (block % step) return [];
      const mark = make("span", "", String(block));
      mark.style.left = `${((block + 0.5) / this.blocks.total) * 100}%`;
      return [mark];
    });
  }

  _build() {
    this.element.className = `mmdit-blocks ${this.action}`;
    this.element.classList.toggle("levels", this.levels);
    this.name = make("label", "mmdit-name", this.label);
    this.field = make("input", "mmdit-text");
    Object.assign(this.field, { type: "text", id: `${this.id}-text`, spellcheck: false, autocomplete: "off" });
    this.name.htmlFor = this.field.id;
    this.field.addEventListener("input", () => this.write(this.field.value, false));
    this.field.addEventListener("change", () => this.changed(this.text, true));
    this.list = make("div", "mmdit-strip");
    this.list.setAttribute("role", "listbox");
    this.list.setAttribute("aria-multiselectable", "true");
    this.list.setAttribute("aria-orientation", "horizontal");
    this.list.tabIndex = 0;
    this.list.title = ""; // or the text field's tooltip would lie over the cells
    this.foot = make("div", "mmdit-foot");
    this.element.replaceChildren(this.name, this.field, this.list, this.foot);
  }

  /** New cells: double and single blocks apart, and no row too long to hit a cell. */
  _layOut() {
    const { double, single, total } = this.blocks;
    const half = Math.ceil(total / 2);
    let spans = [[0, total, ""]]; // first, end, title
    if (single) spans = [[0, double, "d"], [double, total, "s"]];
    else if (total > LONGEST_ROW) spans = [[0, half, "0"], [half, total, String(half)]];
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
