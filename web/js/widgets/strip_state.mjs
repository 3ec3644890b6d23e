// What a strip depends on besides its text: links, the model upstream, other widgets of its node, measured effects.

import { keepAtHome } from "../page/reattach.mjs";
import { after, ask } from "../page/frontend.mjs";
import { effectsFor } from "./reports.mjs";
import { blocksIn, modelFile } from "../page/upstream.mjs";

export const NO_PRESET = "none";

const updates = new Map(); // strip -> a function that brings it up to date soon
const followed = new WeakSet();

/** Bring every strip up to date. */
export function watched() {
  for (const soon of updates.values()) soon();
}

/** Bring a strip up to date whenever something changes that it depends on. Args: at, { node, about, widget, strip }. */
export function watch(at, update) {
  const { node, widget, strip } = at;
  const settle = keepAtHome(node, widget.name, strip.element);
  let due = false;
  const soon = () => {
    if (due) return;
    due = true;
    requestAnimationFrame(() => {
      due = false;
      settle();
      void update(at);
    });
  };
  const begin = () => {
    updates.set(strip, soon);
    soon();
  };
  const end = () => updates.delete(strip);
  begin();
  after(node, "onAdded", begin);
  after(node, "onRemoved", end);
  after(widget, "onRemove", end);
  for (const event of ["onConnectionsChange", "onConfigure"]) after(node, event, soon);
  strip.element.addEventListener("pointerenter", soon);
}

export async function refresh({ node, about, widget, strip }) {
  const [strength, preset] = ["strength", "preset"].map((name) => about.widgets?.find((each) => each.name === name));
  for (const each of [strength, preset]) follow(each, "callback");
  const input = node.inputs?.find((slot) => slot.widget?.name === widget.name);
  if (strip.text !== widget.value) strip.setText(widget.value);
  strip.show({
    label: widget.label ?? widget.name,
    usual: Number.isFinite(strength?.value) ? strength.value : strip.usual,
    linked: (input?.link ?? null) !== null,
  });
  const named = preset && preset.value !== NO_PRESET;
  const file = modelFile(about, (passed, widget) => {
    follow(passed, "onConnectionsChange");
    follow(widget, "callback");
  });
  const [blocks, presets] = await Promise.all([blocksIn(file), named ? ask("/mmdit/presets") : []]);
  const found = presets?.find((each) => each.name === preset?.value);
  strip.setBlocks(blocks);
  strip.show({
    preset: named ? { name: preset.value, chosen: new Map(found?.strengths ?? []) } : null,
    effects: effectsFor(strip.action, strip.blocks, file?.name),
  });
}

/** From now on, bring the strips up to date after this method of another node or widget. */
function follow(object, method) {
  if (!object || followed.has(object)) return;
  followed.add(object);
  after(object, method, watched);
}
