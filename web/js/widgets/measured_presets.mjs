// Presets that fill the node's widgets, and the suggestion of an analysis, in the strip's menu; widgets saved as a preset.

import { NO_PRESET } from "./strip_state.mjs";
import { api, app, isLinked, recordUndo, requestOnce } from "../page/frontend.mjs";
import { blocksIn, modelFile } from "../page/upstream.mjs";
import { MENU } from "./menu_words.mjs";
import { suggestionFor } from "./reports.mjs";
import { words } from "../words.mjs";

const FOLDER = "mmdit/presets"; // in ComfyUI's folder of the user
// Action -> how BlockAnalysis measures it.
const MEASURED = { skip: { branch: "both" }, boost: { branch: "both", mode: "residual" }, analyse: {} };
const SAVED = { skip: ["branch"], boost: ["branch", "strength", "mode"] }; // action -> widgets, besides the blocks
const MOST_NAME = 200; // characters of a preset's name
const TOAST_TIME = 6000; // ms

/** The menu item that fills the widgets as an analysis of the connected model suggests; [] without one. */
export function suggestionItem(node, strip) {
  const blocks = suggestionFor(strip, modelFile(node)?.name);
  if (!blocks) return [];
  const values = { blocks, ...MEASURED[strip.action] };
  const disabled = !strip.editable || anyLinked(node, values);
  const { suggestion, suggested } = words(MENU);
  return [null, { text: suggestion(blocks), hint: suggested, disabled, run: () => fill(node, strip, values) }];
}

/** Menu items of the presets with the node's action that fill its widgets, those for the connected model first; and of bad files. */
export async function measuredItems(node, strip, known) {
  const text = words(MENU);
  const variant = await variantOf(modelFile(node));
  const items = known
    .filter(({ widgets, action }) => widgets && action === strip.action)
    .map((preset) => {
      const values = valuesOf(preset);
      const other = !fits(preset, strip, variant);
      const linked = strip.linked || anyLinked(node, values);
      return {
        text: preset.name,
        hint: `${preset.made_for} (${preset.from})`,
        detail: other ? text.measuredOther(modelOf(preset)) : linked ? text.linkedInput : about(preset),
        disabled: other || linked,
        checked: Object.entries(values).every(([name, value]) => widgetOf(node, name)?.value === value),
        run: () => fill(node, strip, values),
      };
    });
  const bad = known
    .filter(({ kind }) => kind === "unreadable")
    .map(({ name, reason }) => ({ text: name, detail: reason, hint: reason, disabled: true, run() {} }));
  return [...items.sort((a, b) => a.disabled - b.disabled), ...bad];
}

/** Fill a node's widgets with a preset that was chosen in the list of `preset`; say so if it is for another model. */
export async function choose(node, preset) {
  const file = modelFile(node);
  const [blocks, variant] = await Promise.all([blocksIn(file), variantOf(file)]);
  if (!fits(preset, { known: Boolean(blocks), blocks }, variant)) {
    return toast("error", words(MENU).measuredOther(modelOf(preset)), preset.name);
  }
  const values = valuesOf(preset);
  if (anyLinked(node, values)) return toast("error", words(MENU).linkedInput, preset.name);
  setWidgets(node, values);
  recordUndo();
}

/** The menu item that saves the node's widgets as a preset for the connected model. */
export function saveItem(node, strip) {
  const file = modelFile(node);
  const known = strip.known && strip.blocks.family;
  const ready = file && known && strip.editable && strip.chosen.size > 0 && !strip.errors.length;
  return {
    text: words(MENU).savePreset,
    hint: ready ? file.name : words(MENU).cannotSave,
    disabled: !ready,
    run: () => void save(node, strip, file),
  };
}

/** Set a node's widgets by name, as the user would. */
export function setWidgets(node, values) {
  for (const [name, value] of Object.entries(values)) {
    const widget = widgetOf(node, name);
    if (!widget) continue;
    widget.value = value;
    widget.callback?.(value);
  }
}

/** Widget -> value. `preset` stays at none: the workflow also runs where the preset's file is missing. */
function valuesOf({ widgets, made_for }) {
  return { ...widgets, preset: NO_PRESET, made_for };
}

function fill(node, strip, { blocks, ...values }) {
  strip.write(blocks, false);
  setWidgets(node, values);
  recordUndo();
}

/** Whether a preset is for a model. One with notes is for a variant, such as SD3.5 Medium, and not for its family. */
function fits({ double, single, family, notes }, { known, blocks }, variant) {
  if (!known) return true; // the node checks it when it runs
  const same = family === (notes ? variant : (blocks.family ?? family));
  return same && double === blocks.double && single === blocks.single;
}

async function variantOf(file) {
  return file && (await requestOnce(`/mmdit/blocks?${new URLSearchParams(file)}`))?.variant;
}

function about(preset) {
  return preset.notes ? words(preset.notes) : words(MENU).measured(preset);
}

function modelOf({ family, double, single }) {
  return `${family} ${double}+${single}`;
}

function anyLinked(node, values) {
  return Object.keys(values).some((name) => isLinked(node, name));
}

function widgetOf(node, name) {
  return node.widgets?.find((each) => each.name === name);
}

/** Save the widgets under a name; an existing file is never overwritten, and another name is requested. */
async function save(node, strip, file) {
  const text = words(MENU);
  const { family, double, single } = strip.blocks;
  const model = { family, double, single, file: file.name.split(/[\\/]/).pop() };
  const values = SAVED[strip.action].map((name) => [name, widgetOf(node, name)?.value]);
  const widgets = { blocks: strip.text, ...Object.fromEntries(values) };
  let [message, name] = [text.presetName, ""];
  for (;;) {
    name = (await ask(text.savePreset, message, name))?.trim().slice(0, MOST_NAME);
    if (!name) return;
    const preset = { name, action: strip.action, model, widgets, evidence: null };
    const content = JSON.stringify({ format: "mmdit-presets", version: 1, presets: [preset] }, null, 1);
    const path = `${FOLDER}/${fileName(name)}`;
    const options = { overwrite: false, stringify: false, throwOnError: false };
    const response = await api.storeUserData(path, content, options).catch(() => null);
    if (response?.ok) return toast("success", text.presetSaved(path));
    if (response?.status !== 409) return toast("error", (await response?.text()) || text.notSaved);
    message = text.nameTaken(name);
  }
}

/** A file's name made of a preset's; "saved-" because Windows reserves some names. */
function fileName(name) {
  const plain = name.toLowerCase().replaceAll(/[^\p{L}\p{N}_]+/gu, "-");
  return `saved-${plain.replaceAll(/^-+|-+$/g, "").slice(0, 60)}.json`;
}

/** A text from the user, or null. */
async function ask(title, message, defaultValue) {
  const { dialog } = app.extensionManager ?? {};
  return dialog?.prompt ? dialog.prompt({ title, message, defaultValue }) : globalThis.prompt(message, defaultValue);
}

function toast(severity, detail, summary = words(MENU).savePreset) {
  app.extensionManager?.toast?.add({ severity, summary, detail, life: TOAST_TIME });
}
