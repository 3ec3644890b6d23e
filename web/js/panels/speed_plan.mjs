// SpeedPlan: what the chosen speed-up saves and costs, shown before a run.

import { after, make } from "../page/frontend.mjs";
import { Note } from "./note.mjs";
import { words } from "../words.mjs";

const NODE = "SpeedPlan";
const LINES = 2;

export function nodeCreated(node) {
  if (node.comfyClass !== NODE) return;
  const [, { measured_costs: costs }] = node.constructor.nodeData.input.required.speedup;
  const speedup = node.widgets.find((widget) => widget.name === "speedup");
  const note = new Note(node, "plan");
  const show = () => {
    const lines = words().planCost(costs[speedup.value]);
    note.show(lines.map((line) => make("div", "", line)), LINES);
  };
  after(speedup, "callback", show);
  after(node, "onConfigure", show);
  show();
}
