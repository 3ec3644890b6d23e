// TripleTextEncode: token counts of its prompts, updated while typing.

import { after, api, isLinked, make, requestLatest, setting } from "../page/frontend.mjs";
import { Note } from "./note.mjs";
import { coverRunText } from "./run_text.mjs";
import { clipKind } from "../page/upstream.mjs";
import { words } from "../words.mjs";

const NODE = "TripleTextEncode";
const TITLES = ["prompt", "negative"];
const INPUTS = [...TITLES, "clip_l", "clip_g", "t5xxl", "t5_length"];
// The `type` of a CLIP loader -> its text encoders; null: a loader without `type` has all three. Other types, and "sd3",
// which can be any two, are counted by the server during the run.
const ENCODERS = new Map([
  [null, ["CLIP-L", "CLIP-G", "T5"]],
  ["flux", ["CLIP-L", "T5"]],
]);
const PAUSE = 250; // ms without a key before a request

const schedules = new Map(); // node -> function that schedules a count
const counted = new WeakSet(); // nodes that show counts before the run
const kinds = new WeakMap(); // node -> the loader's `type` at the last count

export function nodeCreated(node) {
  if (node.comfyClass !== NODE) return;
  const note = new Note(node, "tokens");
  let timer = 0;
  const schedule = () => {
    clearTimeout(timer);
    timer = setTimeout(() => void count(node, note), PAUSE);
  };
  for (const widget of node.widgets) if (INPUTS.includes(widget.name)) after(widget, "callback", schedule);
  for (const event of ["onConfigure", "onConnectionsChange"]) after(node, event, schedule);
  after(node, "onAdded", () => schedules.set(node, schedule));
  after(node, "onRemoved", () => schedules.delete(node));
  if (node.graph) schedules.set(node, schedule);
  if (enabled()) note.show(TITLES.map((title) => line(node, title, [])), TITLES.length);
  schedule();
}

export function settingsChanged() {
  for (const schedule of schedules.values()) schedule();
}

// A change of the loader is no event of this node.
api.addEventListener("graphChanged", () => {
  for (const [node, schedule] of schedules) if (kinds.has(node) && kinds.get(node) !== clipKind(node)) schedule();
});

/** The labels of the encoders whose tokens can be counted; null if they are unknown. */
function encoders(node) {
  return ENCODERS.get(clipKind(node)) ?? null;
}

function enabled() {
  return setting("MMDiT.Nodes.Tokens");
}

// After a run the server sends the counts as text, for pages without scripts; it is left out where the counts show.
coverRunText(NODE, (node, text) => !text.includes("missing:") && enabled() && counted.has(node));

async function count(node, note) {
  if (!enabled()) return note.hide();
  const value = (name) => (isLinked(node, name) ? "" : (node.widgets.find((widget) => widget.name === name)?.value ?? ""));
  const texts = () => Object.fromEntries(INPUTS.map((name) => [name, value(name)]));
  const sent = texts();
  kinds.set(node, clipKind(node));
  const known = encoders(node);
  const found = known ? await requestLatest(node, "/mmdit/tokens", sent) : {};
  if (found === undefined || INPUTS.some((name) => sent[name] !== value(name))) return; // outdated: a newer request follows
  const later = !known || (found && !found.prompt); // the server leaves the count to the run
  counted[later ? "delete" : "add"](node);
  const unknown = (title) => (isLinked(node, title) ? words().fromLink : later ? words().whenRun : "");
  const counts = (title) => (found?.[title] ?? []).filter(({ label }) => known?.includes(label));
  note.show(
    TITLES.map((title) => line(node, title, counts(title), unknown(title))),
    TITLES.length,
  );
}

/** "prompt  CLIP-L 14  CLIP-G 14  T5 17"; red: tokens are cut; amber: longer than in training. */
function line(node, title, counts, instead = "") {
  const text = words();
  const row = make("div", "");
  const widget = node.widgets.find((each) => each.name === title);
  row.append(make("b", "", widget?.label ?? title));
  if (instead) row.append(` ${instead}`);
  for (const { label, used, chunks, cut, too_long } of instead ? [] : counts) {
    const more = cut.length ? text.cut(cut.length) : chunks > 1 ? text.chunks(chunks) : "";
    const count = make("span", cut.length ? "bad" : too_long ? "warn" : "", text.count(label, used) + more);
    if (cut.length) count.title = text.cutTexts(cut.join(" "));
    else if (too_long) count.title = text.tooLong;
    row.append(count);
  }
  return row;
}
