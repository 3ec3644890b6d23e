// Seeds of -1: a random one is drawn when the page queues a job, so that the job and the workflow in its images hold the
// number. The node then shows it, with a button that keeps it.

import { after, changeJobs, make, nodeOfExecution, ours, recordUndo } from "../page/frontend.mjs";
import { Note } from "./note.mjs";
import { valueOf } from "../page/upstream.mjs";
import { words } from "../words.mjs";

export const RANDOM = -1;
const SEEDS = ["seed", "noise_seed"]; // names of the inputs
const MOST = 2 ** 50; // as ComfyUI's own random seeds; larger ones are not exact in JavaScript
const TEXTS = {
  en: { keep: (seed) => `Use the last seed, ${seed}` },
  zh: { keep: (seed) => `使用上次的种子 ${seed}` },
};

const notes = new WeakMap(); // node -> note

changeJobs(withSeeds);

/** A job with a new number for each seed of -1: in its prompt and in its workflow. */
export function withSeeds(job) {
  const output = { ...job.output };
  let { workflow } = job;
  for (const [id, { class_type: type, inputs }] of Object.entries(output)) {
    for (const name of SEEDS) {
      if (!ours.has(type) || inputs[name] !== RANDOM) continue;
      const seed = Math.floor(Math.random() * MOST);
      output[id] = { ...output[id], inputs: { ...output[id].inputs, [name]: seed } };
      if (workflow === job.workflow) workflow = structuredClone(workflow);
      const node = nodeOfExecution(id);
      if (node) store(workflow, node, name, seed);
    }
  }
  return { ...job, output, workflow };
}

/** Write a drawn seed into a workflow, in place of the widget's value, and show it on the node. */
function store(workflow, node, name, seed) {
  let held = { node, widget: null };
  valueOf(node, name, (source, widget) => (held = { node: source, widget }));
  const { node: owner, widget } = held;
  const inside = workflow?.definitions?.subgraphs?.find(({ id }) => id === owner.graph.id) ?? workflow;
  const saved = inside?.nodes?.find(({ id }) => String(id) === String(owner.id));
  const index = owner.widgets?.findIndex((each) => each === widget || each.name === widget?.name) ?? -1;
  if (saved?.widgets_values?.[index] === RANDOM) saved.widgets_values[index] = seed;
  if (widget) offer(owner, widget, seed);
}

function offer(node, widget, seed) {
  const button = make("button", "", words(TEXTS).keep(seed));
  button.type = "button";
  button.addEventListener("click", () => {
    widget.value = seed;
    widget.callback?.(seed);
    recordUndo();
  });
  if (!notes.has(node)) notes.set(node, new Note(node, "last_seed"));
  notes.get(node).show([button], 2, "last");
}

export function nodeCreated(node) {
  const widget = node.widgets?.find(({ name }) => SEEDS.includes(name));
  if (!widget) return;
  after(widget, "callback", (value) => value !== RANDOM && notes.get(node)?.hide());
  // "randomize" and the like change a seed around a job; -1 stays.
  for (const control of widget.linkedWidgets ?? []) {
    for (const event of ["beforeQueued", "afterQueued"]) {
      const change = control[event];
      control[event] = function (...values) {
        if (widget.value !== RANDOM) return change?.apply(this, values);
      };
    }
  }
}
