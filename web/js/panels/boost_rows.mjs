// Text Boost: its input `rows` as rows of fields, with a switch each, and a button that adds one. The input's text stays the
// saved value. Where it is linked or cannot be read, the text area is in view instead.

import { addStyles, after, isLinked, make, recordUndo } from "../page/frontend.mjs";
import { keepAttached } from "../page/reattach.mjs";
import { plain } from "../widgets/grammar.mjs";
import { words } from "../words.mjs";
import { hideWhile } from "./fold.mjs";
import { Note } from "./note.mjs";

const NAME = "rows";
const PANEL = "boost_rows";
const NEW = { on: true, blocks: "", strength: "1.5", phrase: "" };
const MOST = 10; // strength
const NUMBER = /^-?(\d+\.?\d*|\.\d+)$/;
const ROW = 26 / 15; // its height in rows.css, in lines of a note
const TEXTS = {
  en: {
    add: "+ boost",
    all: "Further boosts",
    row: (number) => `Boost ${number}`,
    on: "On",
    blocks: "Blocks",
    strength: "Strength",
    phrase: "Phrase",
    whole: "whole text",
    remove: "Delete this boost",
  },
  zh: {
    add: "+ 增强",
    all: "更多增强",
    row: (number) => `增强 ${number}`,
    on: "启用",
    blocks: "块",
    strength: "强度",
    phrase: "短语",
    whole: "整段文本",
    remove: "删除这一增强",
  },
};

const MOST_ROWS = 100;

await addStyles("rows.css");

/** The rows of a text, as mmdit_core/control/boost_rows.py reads them; null if one cannot be read. */
export function readRows(text) {
  const rows = [];
  for (const line of text.split(/\r\n?|\n/).filter((each) => each.trim())) {
    const [, switched, blocks, strength, phrase = ""] =
      line.match(/^([^|｜]*)[|｜]([^|｜]*)[|｜]([^|｜]*)(?:[|｜](.*))?$/su) ?? [];
    const on = plain(switched ?? "").trim().toLowerCase();
    const number = plain(strength ?? "").trim();
    if (!["on", "off"].includes(on) || !NUMBER.test(number)) return null;
    rows.push({ on: on === "on", blocks: plain(blocks).trim(), strength: number, phrase: phrase.trim() });
  }
  return rows.length > MOST_ROWS ? null : rows;
}

export function writeRows(rows) {
  const line = ({ on, blocks, strength, phrase }) => `${on ? "on" : "off"} | ${blocks} | ${strength} | ${phrase}`;
  return rows.map((row) => line(row).trim()).join("\n");
}

export function show(node) {
  const source = node.widgets?.find(({ name }) => name === NAME);
  if (source) new Rows(node, source);
}

class Rows {
  constructor(node, source) {
    Object.assign(this, { node, source, note: new Note(node, PANEL), text: null, rows: [] });
    hideWhile(source, () => this.active);
    // The classic renderer leaves a hole in place of a linked text area.
    if (source.element) source.isVisible = () => !source.hidden && node.isWidgetVisible(source);
    const update = () => this.update();
    after(source, "callback", update);
    for (const event of ["onConfigure", "onConnectionsChange"]) after(node, event, update);
    update();
  }

  get active() {
    return Boolean(this.note.widget);
  }

  /** Read the input's text, and show its rows or the text area. */
  update() {
    const { node, source } = this;
    const linked = isLinked(node, NAME);
    if (source.element) source.element.inert = linked;
    const text = String(source.value ?? "");
    if (this.active && !linked && text === this.text) return this._attach();
    const rows = linked ? null : readRows(text);
    // A text that is being typed into the text area is read when that loses the focus.
    if (rows && !this.active && this.text !== null && document.activeElement?.matches("textarea")) {
      document.activeElement.addEventListener("blur", () => this.update(), { once: true });
      return;
    }
    this.text = text;
    this.rows = rows ?? [];
    // Nodes 2.0 reads these when the node's widgets change.
    Object.assign(source.options, { hidden: Boolean(rows), advanced: Boolean(rows) });
    source.replaced = Boolean(rows); // for the count of folded inputs
    if (rows) this.draw();
    else this.note.hide();
  }

  draw() {
    const { node, note, rows } = this;
    const text = words(TEXTS);
    const add = make("button", "add", text.add);
    add.type = "button";
    add.addEventListener("click", () => this.change([...rows, { ...NEW }], rows.length));
    const height = note.widget?.computeSize()[1] ?? 0;
    const tight = height && node.size[1] <= node.computeSize()[1] + 1;
    note.show([...rows.map((row, index) => this._row(row, index, text)), add], ROW * (rows.length + 1), "boosts");
    const { element } = note.widget;
    const fewer = height - note.widget.computeSize()[1];
    // The classic renderer grows a node to fit and never shrinks it.
    if (tight && fewer > 0) node.setSize([node.size[0], node.size[1] - fewer]);
    element.title = "";
    element.setAttribute("role", "group");
    element.setAttribute("aria-label", text.all);
    this._attach();
  }

  /** Replace the rows, as one step of undo. Args: focused, the row whose blocks get the focus, or the last one. */
  change(rows, focused) {
    this.rows = rows;
    this.write();
    this.draw();
    const { element } = this.note.widget;
    const fields = element.querySelectorAll(".blocks");
    (fields[Math.min(focused, fields.length - 1)] ?? element.querySelector(".add")).focus();
    recordUndo();
  }

  write() {
    this.text = writeRows(this.rows);
    this.source.value = this.text;
  }

  _attach() {
    const attach = keepAttached(this.node, PANEL, this.note.widget.element);
    requestAnimationFrame(() => attach());
  }

  _row(row, index, text) {
    const line = make("div", "boost");
    line.setAttribute("role", "group");
    line.setAttribute("aria-label", text.row(index + 1));
    const field = (name, options, read) => {
      const input = make("input", name);
      Object.assign(input, { type: "text", ariaLabel: text[name], title: text[name], spellcheck: false, ...options });
      const write = (done) => {
        row[name] = read(input);
        this.write();
        if (!done) return;
        if (input.type !== "checkbox") input.value = row[name];
        recordUndo();
      };
      input.addEventListener("input", () => input.type !== "checkbox" && write(false));
      input.addEventListener("change", () => write(true));
      return input;
    };
    const strength = ({ value }) => (NUMBER.test(value) ? String(Math.min(MOST, Math.max(0, value))) : row.strength);
    const remove = make("button", "remove", "×");
    Object.assign(remove, { type: "button", ariaLabel: text.remove, title: text.remove });
    remove.addEventListener("click", () => this.change(this.rows.filter((each) => each !== row), index));
    line.append(
      field("on", { type: "checkbox", checked: row.on, role: "switch" }, ({ checked }) => checked),
      field("blocks", { value: row.blocks, placeholder: words().nothing }, ({ value }) => plain(value.replaceAll(/[|｜]/g, ",")).trim()),
      field("strength", { type: "number", min: 0, max: MOST, step: 0.05, value: row.strength }, strength),
      field("phrase", { value: row.phrase, placeholder: text.whole }, ({ value }) => value.trim()),
      remove,
    );
    line.addEventListener("keydown", (event) => {
      // ComfyUI would delete the node.
      if (["Delete", "Backspace"].includes(event.key)) event.stopPropagation();
    });
    return line;
  }
}
