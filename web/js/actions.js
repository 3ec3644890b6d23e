// The strip's menu: whole choices, thirds, the clipboard, published presets.

import { NO_PRESET } from "./context.js";
import { ask, remember } from "./host.js";
import { openMenu } from "./menu.js";

export async function showMenu(node, strip, x, y) {
  const disabled = !strip.editable;
  const text = (label, value) => ({ text: label, disabled, run: () => strip.write(value) });
  const presets = await presetItems(node, strip);
  const items = [
    text("All", "all"),
    text("None", ""),
    { text: "Invert", disabled, run: () => strip.invert() },
    null,
    text("Early third", "early"),
    text("Middle third", "middle"),
    text("Late third", "late"),
    null,
    { text: "Copy text", run: () => navigator.clipboard?.writeText(strip.text).catch(() => {}) },
    { text: "Paste text", disabled, run: () => paste(strip) },
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
      const hint = other ? `It was published for ${model}; this is another model.` : note;
      return item(name, name, { hint, disabled: other || strip.linked });
    });
  return items.length ? [...items, item(NO_PRESET, "No preset")] : [];
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
