// Shows the step and the seconds per step on a sampling node, in the place of its summary.

import { api, nodeOfRun, onOwnRun } from "../page/frontend.mjs";
import { hideRunText, showRunText } from "./run_text.mjs";
import { words } from "../words.mjs";

const SAMPLERS = new Set(["FlowMatchingSampler", "MMDiTSampler", "FlowInvert", "FlowEdit"]);
const WINDOW = 8; // events that the time per step is averaged over

let events = []; // the last ones, { value, at }
let running = "";
let step = null; // the text of the last event, { node, text }

onOwnRun("progress", ({ node, prompt_id, value, max }) => {
  const sampler = nodeOfRun(node);
  if (!SAMPLERS.has(sampler?.comfyClass)) return;
  const run = `${prompt_id} ${node}`;
  if (run !== running || value <= events.at(-1)?.value) events = [];
  running = run;
  events = [...events, { value, at: performance.now() }].slice(-WINDOW - 1);
  const [first, last] = [events[0], events.at(-1)];
  const perStep = (last.at - first.at) / (last.value - first.value) / 1000; // some steps have no event
  const pace = events.length < 2 ? "" : words().pace(perStep.toPrecision(2), Math.round((max - value) * perStep));
  step = { node: sampler, text: words().step(value, max) + pace };
  showRunText(step.node, step.text);
});

// A run that stops has no summary, and its remaining time is no longer true.
for (const end of ["execution_error", "execution_interrupted"])
  api.addEventListener(end, () => step && hideRunText(step.node, step.text));
