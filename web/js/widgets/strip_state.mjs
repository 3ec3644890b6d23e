// Updates strips when their links, model, other widgets or reports change.

import { keepAttached } from "../page/reattach.mjs";
import { after, requestOnce } from "../page/frontend.mjs";
import { effectsFor, lastListOf } from "./reports.mjs";
import { blocksIn, modelFile, sourceOf, valueOf } from "../page/upstream.mjs";

export const NO_PRESET = "none";

const updates = new Map(); // strip -> function that schedules its update
const followed = new WeakSet();

/** Schedule an update of every strip. */
export function updateStrips() {
  for (const schedule of updates.values()) schedule();
}

/** Call update(at) on every event that can change a strip. Args: at, { node, about, widget, strip }. */
export function updateOnChange(at, update) {
  const { node, widget, strip } = at;
  const attach = keepAttached(node, widget.name, strip.element);
  let pending = false;
  const schedule = () => {
    if (pending) return;
    pending = true;
    requestAnimationFrame(() => {
      pending = false;
      attach();
      void update(at);
    });
  };
  const begin = () => {
    updates.set(strip, schedule);
    schedule();
  };
  const end = () => updates.delete(strip);
  begin();
  after(node, "onAdded", begin);
  after(node, "onRemoved", end);
  after(widget, "onRemove", end);
  for (const event of ["onConnectionsChange", "onConfigure"]) after(node, event, schedule);
  strip.element.addEventListener("pointerenter", schedule);
}

/** Read a strip's state from the graph and show it. */
export async function refresh({ node, about, widget, strip }) {
  const [strength, preset] = ["strength", "preset"].map((name) => about.widgets?.find((each) => each.name === name));
  for (const each of [strength, preset]) follow(each, "callback");
  const input = node.inputs?.find((slot) => slot.widget?.name === widget.name);
  const visit = (source, each) => {
    follow(source, "onConnectionsChange");
    follow(each, "callback");
  };
  const linked = (input?.link ?? null) !== null;
  // An unknown linked text is shown as none.
  const source = linked && sourceOf(node, node.inputs.indexOf(input));
  const before = linked && (valueOf(node, widget.name, visit) ?? lastListOf(source, strip));
  const text = linked ? String(before ?? "") : widget.value;
  if (strip.text !== text) strip.setText(text);
  strip.show({
    label: widget.label ?? widget.name,
    defaultStrength: Number.isFinite(strength?.value) ? strength.value : strip.defaultStrength,
    linked,
  });
  const hasPreset = preset && preset.value !== NO_PRESET;
  const file = modelFile(about, visit);
  const [blocks, presets] = await Promise.all([blocksIn(file), hasPreset ? requestOnce("/mmdit/presets") : []]);
  const found = presets?.find((each) => each.kind === "published" && each.name === preset?.value);
  strip.setBlocks(blocks);
  strip.show({
    preset: hasPreset ? { name: preset.value, chosen: new Map(found?.strengths ?? []) } : null,
    effects: effectsFor(strip.action, strip.blocks, file?.name),
  });
}

/** Update the strips after each call of a method of another node or widget. */
function follow(object, method) {
  if (!object || followed.has(object)) return;
  followed.add(object);
  after(object, method, updateStrips);
}
