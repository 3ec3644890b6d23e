// The text that a node shows during and after a run, in a widget of the pack's own: newer frontends remove theirs when the
// run ends. The server sends it as progress_text, which a page without the scripts shows in the frontend's widget.

import { api, nodeOfRun, ours, removeTextPreview } from "../page/frontend.mjs";
import { Note } from "./note.mjs";
import { localized } from "../words.mjs";

const shown = new WeakMap(); // node -> { note, text }
const covered = new Map(); // node type -> whether a text is already in another note of the node

api.addEventListener("progress_text", ({ detail }) => {
  const node = nodeOfRun(detail?.nodeId);
  if (!ours.has(node?.comfyClass)) return;
  removeTextPreview(node);
  if (!covered.get(node.comfyClass)?.(node, detail.text)) showRunText(node, detail.text);
});

/** Leave out the texts of a node type for which isCovered(node, text) is true. */
export function coverRunText(type, isCovered) {
  covered.set(type, isCovered);
}

export function showRunText(node, text) {
  const note = shown.get(node)?.note ?? new Note(node, "run");
  shown.set(node, { note, text });
  localized(text, (local) => shown.get(node)?.text === text && note.showText(local, "run"));
}

/** Hide a text, unless the node shows a newer one. */
export function hideRunText(node, text) {
  const now = shown.get(node);
  if (now?.text !== text) return;
  now.note.hide();
  shown.delete(node);
}
