// The strip's menu: whole choices, thirds, the clipboard, published presets.

import { NO_PRESET } from "./strip_state.mjs";
import { ask, remember } from "../page/frontend.mjs";
import { openMenu } from "./menu.mjs";
import { words } from "../words.mjs";

export async function showMenu(node, strip, x, y) {
  const disabled = !strip.editable;
  const say = words();
  const text = (label, value) => ({ text: label, disabled, run: () => strip.write(value) });
  const presets = await presetItems(node, strip);
  const items = [
    text(say.all, "all"),
    text(say.none, ""),
    { text: say.invert, disabled, run: () => strip.invert() },
    null,
    text(say.early, "early"),
    text(say.middle, "middle"),
    text(say.late, "late"),
    null,
    { text: say.copy, run: () => navigator.clipboard?.writeText(strip.text).catch(() => {}) },
    { text: say.paste, disabled, run: () => paste(strip) },
    ...(presets.length ? [null, ...presets] : []),
  ];
  openMenu(x, y, items, strip.list);
}

/** The node's presets for what it does; one for another model than the connected one cannot be chosen. */
async function presetItems(node, strip) {
  const widget = node.widgets?.find((each) => each.name === "preset");
  if (!widget) return [];
  const known = (await ask("/mmdit/presets")) ?? [];
  const item = (name, text, more) => ({
    text,
    checked: widget.value === name,
    run() {
      widget.value = name;
      widget.callback?.(name);
      remember();
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

/** The clipboard's text; where the page may not read it, the text field is ready for Ctrl+V. */
async function paste(strip) {
  try {
    strip.write((await navigator.clipboard.readText()).trim());
  } catch {
    strip.field.focus();
    strip.field.select();
  }
}
