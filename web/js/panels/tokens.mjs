// TripleTextEncode tells how many tokens its prompts have while they are typed.

import { after, api, make, nodeOfExecution, request, setting } from "../page/frontend.mjs";
import { Note } from "./note.mjs";
import { clipKind } from "../page/upstream.mjs";
import { words } from "../words.mjs";

const NODE = "TripleTextEncode";
const TITLES = ["prompt", "negative"];
const INPUTS = [...TITLES, "clip_l", "clip_g", "t5xxl", "t5_length"];
// What a loader calls its text encoders -> those of SD3's that they are; a loader that has no name for them has all
// three. Of others, and of "sd3", which may be any two, the server tells when they have run.
const ENCODERS = new Map([
  [null, ["CLIP-L", "CLIP-G", "T5"]],
  ["flux", ["CLIP-L", "T5"]],
]);
const REST = 250; // ms without a key before the server is asked

const counted = new Map(); // node -> a function that counts its tokens anew, soon
const kinds = new WeakMap(); // node -> what the loader called its encoders when they were counted last

export function nodeCreated(node) {
  if (node.comfyClass !== NODE) return;
  const note = new Note(node, "tokens");
  let timer = 0;
  const soon = () => {
    clearTimeout(timer);
    timer = setTimeout(() => void count(node, note), REST);
  };
  for (const widget of node.widgets) if (INPUTS.includes(widget.name)) after(widget, "callback", soon);
  for (const event of ["onConfigure", "onConnectionsChange"]) after(node, event, soon);
  after(node, "onAdded", () => counted.set(node, soon));
  after(node, "onRemoved", () => counted.delete(node));
  if (node.graph) counted.set(node, soon);
  if (wanted()) note.show(TITLES.map((title) => line(node, title, [])), TITLES.length);
  soon();
}

export function settingsChanged() {
  for (const soon of counted.values()) soon();
}

// Another loader, or another choice on it, is no event of the node itself.
api.addEventListener("graphChanged", () => {
  for (const [node, soon] of counted) if (kinds.has(node) && kinds.get(node) !== clipKind(node)) soon();
});

/** The labels of the encoders that a node's prompts can be counted for; null where they are unknown. */
function encoders(node) {
  return ENCODERS.get(clipKind(node)) ?? null;
}

function wanted() {
  return setting("MMDiT.Nodes.Tokens");
}

// After a run the server tells the same once more, for pages without scripts; here only what is new is worth a place.
api.addEventListener("progress_text", ({ detail }) => {
  const node = nodeOfExecution(detail?.nodeId);
  if (node?.comfyClass !== NODE || detail.text.includes("missing:") || !wanted() || !encoders(node)) return;
  const told = node.widgets.findIndex((widget) => widget.name === "$$node-text-preview");
  if (told < 0) return;
  node.widgets[told].onRemove?.();
  node.widgets.splice(told, 1);
});

async function count(node, note) {
  if (!wanted()) return note.hide();
  const linked = (name) => (node.inputs.find((slot) => slot.widget?.name === name)?.link ?? null) !== null;
  const value = (name) => (linked(name) ? "" : (node.widgets.find((widget) => widget.name === name)?.value ?? ""));
  const texts = () => Object.fromEntries(INPUTS.map((name) => [name, value(name)]));
  const asked = texts();
  kinds.set(node, clipKind(node));
  const known = encoders(node);
  const found = known ? await request("/mmdit/tokens", asked) : {};
  if (INPUTS.some((name) => asked[name] !== value(name))) return; // typed on meanwhile: another answer is on its way
  const unknown = (title) => (linked(title) ? words().fromLink : known ? "" : words().whenRun);
  const counts = (title) => (found?.[title] ?? []).filter(({ label }) => known?.includes(label));
  note.show(
    TITLES.map((title) => line(node, title, counts(title), unknown(title))),
    TITLES.length,
  );
}

/** "prompt  CLIP-L 14  CLIP-G 14  T5 17"; what is cut is red, what is longer than in training is amber. */
function line(node, title, counts, instead = "") {
  const say = words();
  const row = make("div", "");
  const widget = node.widgets.find((each) => each.name === title);
  row.append(make("b", "", widget?.label ?? title));
  if (instead) row.append(` ${instead}`);
  for (const { label, used, chunks, cut, too_long } of instead ? [] : counts) {
    const more = cut.length ? say.cut(cut.length) : chunks > 1 ? say.chunks(chunks) : "";
    const count = make("span", cut.length ? "bad" : too_long ? "warn" : "", say.count(label, used) + more);
    if (cut.length) count.title = say.notRead(cut.join(" "));
    else if (too_long) count.title = say.tooLong;
    row.append(count);
  }
  return row;
}
