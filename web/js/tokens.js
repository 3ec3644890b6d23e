// TripleTextEncode tells how many tokens its prompts have while they are typed.

import { after, api, app, make, nodeOfExecution } from "./host.js";
import { Note } from "./note.js";

const NODE = "TripleTextEncode";
const TITLES = ["prompt", "negative"];
const INPUTS = [...TITLES, "clip_l", "clip_g", "t5xxl", "t5_length"];
const REST = 250; // ms without a key before the server is asked

app.registerExtension({
  name: "mmdit.tokens",
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const note = new Note(node, "tokens");
    let timer = 0;
    const soon = () => {
      clearTimeout(timer);
      timer = setTimeout(() => void count(node, note), REST);
    };
    for (const widget of node.widgets) if (INPUTS.includes(widget.name)) after(widget, "callback", soon);
    after(node, "onConfigure", soon);
    after(node, "onConnectionsChange", soon);
    note.show(TITLES.map((title) => line(title, [])), TITLES.length);
    soon();
  },
});

// After a run the server tells the same once more, for pages without scripts; here only what is new is worth a place.
api.addEventListener("progress_text", ({ detail }) => {
  const node = nodeOfExecution(detail?.nodeId);
  if (node?.comfyClass !== NODE || detail.text.includes("missing:")) return;
  const told = node.widgets.findIndex((widget) => widget.name === "$$node-text-preview");
  if (told < 0) return;
  node.widgets[told].onRemove?.();
  node.widgets.splice(told, 1);
});

async function count(node, note) {
  const linked = (name) => (node.inputs.find((slot) => slot.widget?.name === name)?.link ?? null) !== null;
  const value = (name) => (linked(name) ? "" : (node.widgets.find((widget) => widget.name === name)?.value ?? ""));
  const texts = () => JSON.stringify(Object.fromEntries(INPUTS.map((name) => [name, value(name)])));
  const asked = texts();
  const found = await ask(asked);
  if (asked !== texts()) return; // typed on meanwhile: another answer is on its way
  note.show(
    TITLES.map((title) => line(title, linked(title) ? null : (found?.[title] ?? []))),
    TITLES.length,
  );
}

async function ask(texts) {
  try {
    const response = await api.fetchApi("/mmdit/tokens", { method: "POST", body: texts });
    return response.ok ? await response.json() : null;
  } catch {
    return null;
  }
}

/** "prompt  CLIP-L 14  CLIP-G 14  T5 17"; what is cut is red, what is longer than in training is amber. */
function line(title, counts) {
  const row = make("div", "");
  row.append(make("b", "", title));
  if (counts === null) row.append(" from the link");
  for (const { label, used, chunks, cut, too_long } of counts ?? []) {
    const more = cut.length ? ` +${cut.length} cut` : chunks > 1 ? ` in ${chunks}` : "";
    const count = make("span", cut.length ? "bad" : too_long ? "warn" : "", `${label} ${used}${more}`);
    if (cut.length) count.title = `Not read: ${cut.join(" ")}`;
    else if (too_long) count.title = "Longer than any text in SD3's training: expect artefacts at the edges.";
    row.append(count);
  }
  return row;
}
