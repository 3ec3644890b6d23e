// While a node of this pack samples, it tells the step and the seconds that a step takes, where its summary will stand.

import { api, nodeOfExecution } from "../page/frontend.mjs";
import { words } from "../words.mjs";

const SAMPLERS = new Set(["FlowMatchingSampler", "MMDiTSampler", "FlowInvert"]);
const LATELY = 8; // tellings that the time of a step is averaged over

let told = []; // the last ones, { value, at }
let running = "";

api.addEventListener("progress", ({ detail: { node, prompt_id, value, max } }) => {
  if (!SAMPLERS.has(nodeOfExecution(node)?.comfyClass)) return;
  const run = `${prompt_id} ${node}`;
  if (run !== running || value <= told.at(-1)?.value) told = [];
  running = run;
  told = [...told, { value, at: performance.now() }].slice(-LATELY - 1);
  const [first, last] = [told[0], told.at(-1)];
  const each = (last.at - first.at) / (last.value - first.value) / 1000; // some steps are not told of
  const pace = told.length < 2 ? "" : words().pace(each.toPrecision(2), Math.round((max - value) * each));
  api.dispatchCustomEvent("progress_text", { nodeId: node, text: words().step(value, max) + pace, prompt_id });
});
