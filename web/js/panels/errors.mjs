// An error of this pack names the node whose dial is wrong; often another one meets it, such as the sampler. Here the
// words are shown on the node that they name.

import { api, nodeOfExecution } from "../page/frontend.mjs";
import { Note } from "./note.mjs";
import { behind } from "../page/upstream.mjs";
import { words } from "../words.mjs";

const NAMED = /^([A-Z]\w+): (.+)/s;
const LETTERS = 48; // of a line
const MOST_LINES = 6;

const notes = [];

api.addEventListener("execution_start", clear);
api.addEventListener("graphCleared", clear);
api.addEventListener("execution_error", ({ detail }) => {
  const named = NAMED.exec(detail.exception_message ?? "");
  const failed = nodeOfExecution(detail.node_id);
  const node = named && failed ? nearest(failed, named[1]) : null;
  if (!node) return;
  const note = new Note(node, "error");
  const text = inWords(node, named[2].trim());
  note.show([text], Math.min(MOST_LINES, Math.ceil(text.length / LETTERS)), "bad");
  notes.push(note);
});

function clear() {
  for (const note of notes.splice(0)) note.hide();
}

/** An error begins with its input's name, which stands on the node in the page's language. */
function inWords(node, text) {
  const [all, name, rest] = /^(\w+): (.+)/s.exec(text) ?? [];
  const input = all && node.inputs?.find((each) => each.name === name);
  return input ? (input.label ?? input.localized_name ?? name) + words().colon + rest : text;
}

/** The nearest node of a kind that feeds a node, or that node itself. */
function nearest(node, kind) {
  const seen = new Set();
  for (let row = [node]; row.length; ) {
    const found = row.find((each) => each.comfyClass === kind);
    if (found) return found;
    for (const each of row) seen.add(each);
    const next = row.flatMap((each) => each.inputs?.map((_, slot) => behind(each, slot)?.node) ?? []);
    row = [...new Set(next)].filter((each) => each && !seen.has(each));
  }
  return null;
}
