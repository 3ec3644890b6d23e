// Shows the step and the seconds per step on a sampling node, in the place of its summary.

import { api, nodeOfExecution } from "../page/frontend.mjs";
import { words } from "../words.mjs";

const SAMPLERS = new Set(["FlowMatchingSampler", "MMDiTSampler", "FlowInvert"]);
const WINDOW = 8; // events that the time per step is averaged over

let events = []; // the last ones, { value, at }
let running = "";

api.addEventListener("progress", ({ detail: { node, prompt_id, value, max } }) => {
  if (!SAMPLERS.has(nodeOfExecution(node)?.comfyClass)) return;
  const run = `${prompt_id} ${node}`;
  if (run !== running || value <= events.at(-1)?.value) events = [];
  running = run;
  events = [...events, { value, at: performance.now() }].slice(-WINDOW - 1);
  const [first, last] = [events[0], events.at(-1)];
  const perStep = (last.at - first.at) / (last.value - first.value) / 1000; // some steps have no event
  const pace = events.length < 2 ? "" : words().pace(perStep.toPrecision(2), Math.round((max - value) * perStep));
  api.dispatchCustomEvent("progress_text", { nodeId: node, text: words().step(value, max) + pace, prompt_id });
});
