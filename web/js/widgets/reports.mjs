// What BlockAnalysis has measured: kept with its node, in the workflow, and looked up by the strips.

import { api, app, nodeOfExecution } from "../page/frontend.mjs";

const KEPT = "mmdit_report"; // among the node's properties
// What a strip does -> the operations whose effect it shows, the nearest first.
const NEAREST = {
  skip: ["skip"],
  boost: ["boost", "disable"],
  disable: ["disable"],
  prompt: ["disable", "boost"],
  analyse: ["skip", "disable", "boost"],
};

/** Keep what the server tells of a finished analysis with the node that made it. */
export function listenForReports(changed) {
  api.addEventListener("mmdit.report", ({ detail }) => {
    const node = nodeOfExecution(detail.node);
    if (!node) return;
    const { node: _, ...report } = detail;
    node.properties[KEPT] = report;
    changed();
  });
}

/** Each block's measured effect, or null; of several analyses of such a model the one of this file first. */
export function effectsFor(action, blocks, file) {
  const fitting = [...everyNode()]
    .map((node) => node.properties?.[KEPT])
    .filter((report) => report?.double === blocks.double && report.single === blocks.single);
  const name = file?.split(/[\\/]/).at(-1);
  const report = fitting.find((each) => name && each.model.startsWith(name)) ?? fitting[0];
  const operation = report && NEAREST[action]?.find((each) => report.effects[each]);
  return operation ? report.effects[operation] : null;
}

function* everyNode() {
  const root = app.rootGraph ?? app.graph;
  yield* root?._nodes ?? [];
  for (const graph of root?.subgraphs?.values() ?? []) yield* graph._nodes ?? [];
}
