// An error of this pack starts with the node whose input is wrong. Often another node raises it, such as the sampler.
// This module shows the message on the node that it names.

import { api, nodeOfRun } from "../page/frontend.mjs";
import { Note } from "./note.mjs";
import { sourceOf } from "../page/upstream.mjs";
import { localized, words } from "../words.mjs";

const NAMED = /^([A-Z]\w+): (.+)/s;

const notes = [];

api.addEventListener("execution_start", clear);
api.addEventListener("graphCleared", clear);
api.addEventListener("execution_error", ({ detail }) => {
  const named = NAMED.exec(detail.exception_message ?? "");
  const failed = nodeOfRun(detail.node_id);
  const node = named && failed ? nearest(failed, named[1]) : null;
  if (!node) return;
  const note = new Note(node, "error");
  notes.push(note);
  localized(named[2].trim(), (text) => notes.includes(note) && note.showText(labelled(node, text), "bad"));
});

function clear() {
  for (const note of notes.splice(0)) note.hide();
}

/** Replace the input's name at the start of a message by its label in the user's language. */
function labelled(node, text) {
  const [all, name, rest] = /^(\w+)(?:: |：)(.+)/s.exec(text) ?? [];
  const input = all && node.inputs?.find((each) => each.name === name);
  return input ? (input.label ?? input.localized_name ?? name) + words().colon + rest : text;
}

/** The nearest node of a type upstream of a node, the node itself included. */
function nearest(node, type) {
  const seen = new Set();
  for (let row = [node]; row.length; ) {
    const found = row.find((each) => each.comfyClass === type);
    if (found) return found;
    for (const each of row) seen.add(each);
    const next = row.flatMap((each) => each.inputs?.map((_, slot) => sourceOf(each, slot)) ?? []);
    row = [...new Set(next)].filter((each) => each && !seen.has(each));
  }
  return null;
}
