// The strip's context menu: all, none, invert, thirds, clipboard, published presets.

import { NO_PRESET } from "./strip_state.mjs";
import { recordUndo, requestOnce } from "../page/frontend.mjs";
import { openMenu } from "./menu.mjs";
import { words } from "../words.mjs";

export async function showMenu(node, strip, x, y) {
  const disabled = !strip.editable;
  const text = words();
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
    null,
    { text: text.copy, run: () => navigator.clipboard?.writeText(strip.text).catch(() => {}) },
    { text: text.paste, disabled, run: () => paste(strip) },
    ...(presets.length ? [null, ...presets] : []),
  ];
  openMenu(x, y, items, strip.list);
}

/** The presets with the node's action; those for another model than the connected one are disabled. */
async function presetItems(node, strip) {
  const widget = node.widgets?.find((each) => each.name === "preset");
  if (!widget) return [];
  const known = (await requestOnce("/mmdit/presets")) ?? [];
  const item = (name, text, more) => ({
    text,
    checked: widget.value === name,
    run() {
      widget.value = name;
      widget.callback?.(name);
      recordUndo();
    },
    ...more,
  });
  const items = known
    .filter(({ action }) => action === strip.action)
    .map(({ name, model, note, double, single }) => {
      const other = strip.known && (double !== strip.blocks.double || single !== strip.blocks.single);
      const hint = other ? words().otherModel(model) : note;
      return item(name, name, { hint, disabled: other || strip.linked });
    });
  return items.length ? [...items, item(NO_PRESET, words().noPreset)] : [];
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
