// SpeedPlan tells what the chosen speed-up saves and costs before anything runs.

import { after, make } from "../page/frontend.mjs";
import { Note } from "./note.mjs";
import { words } from "../words.mjs";

const NODE = "SpeedPlan";
const LINES = 2;

export function nodeCreated(node) {
  if (node.comfyClass !== NODE) return;
  const [, { prices }] = node.constructor.nodeData.input.required.speedup;
  const dial = node.widgets.find((widget) => widget.name === "speedup");
  const note = new Note(node, "plan");
  const show = () => {
    const lines = words().price(prices[dial.value]);
    note.show(lines.map((line) => make("div", "", line)), LINES);
  };
  after(dial, "callback", show);
  after(node, "onConfigure", show);
  show();
}
