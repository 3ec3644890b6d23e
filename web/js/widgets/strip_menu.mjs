// The strip's context menu: all, none, invert, thirds, clipboard, presets.

import { NO_PRESET } from "./strip_state.mjs";
import { recordUndo, request } from "../page/frontend.mjs";
import { measuredItems, saveItem, setWidgets, suggestionItem } from "./measured_presets.mjs";
import { openMenu } from "./menu.mjs";
import { MENU } from "./menu_words.mjs";
import { words } from "../words.mjs";

export async function showMenu(node, strip, x, y) {
  const disabled = !strip.editable;
  const text = words(MENU);
  const choice = (label, value) => ({ text: label, disabled, run: () => strip.write(value) });
  const presets = await presetItems(node, strip);
  const items = [
    choice(text.all, "all"),
    choice(text.none, ""),
    { text: text.invert, disabled, run: () => strip.invert() },
    null,
    choice(text.early, "early"),
    choice(text.middle, "middle"),
    choice(text.late, "late"),
    ...suggestionItem(node, strip),
    null,
    { text: text.copy, run: () => navigator.clipboard?.writeText(strip.text).catch(() => {}) },
    { text: text.paste, disabled, run: () => paste(strip) },
    ...presets,
  ];
  openMenu(x, y, items, strip.list);
}

/** The presets with the node's action; those for another model than the connected one are disabled. */
async function presetItems(node, strip) {
  const [preset, madeFor] = ["preset", "made_for"].map((name) => node.widgets?.find((each) => each.name === name));
  if (!preset) return [];
  const known = (await request("/mmdit/presets")) ?? []; // each time: the user may have added a file
  const item = (name, text, more) => ({
    text,
    checked: preset.value === name && !(name === NO_PRESET && madeFor?.value),
    run() {
      setWidgets(node, { preset: name, made_for: "" });
      recordUndo();
    },
    ...more,
  });
  const published = known
    .filter(({ kind, action }) => kind === "published" && action === strip.action)
    .map(({ name, model, note, double, single }) => {
      const other = strip.known && (double !== strip.blocks.double || single !== strip.blocks.single);
      const hint = other ? words(MENU).otherModel(model) : note;
      return item(name, name, { hint, disabled: other || strip.linked });
    });
  const measured = await measuredItems(node, strip, known);
  const none = item(NO_PRESET, words(MENU).noPreset);
  return [null, ...published, none, ...(measured.length ? [null, ...measured] : []), null, saveItem(node, strip)];
}

/** Paste the clipboard's text; without permission to read it, select the text field for Ctrl+V. */
async function paste(strip) {
  try {
    strip.write((await navigator.clipboard.readText()).trim());
  } catch {
    strip.field.focus();
    strip.field.select();
  }
}
