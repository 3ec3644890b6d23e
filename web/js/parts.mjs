// What comes with the first node of the pack. A part that adds something to nodes exports nodeCreated(node), which is
// called for each node of the pack; one that only listens to the server does so when it is imported.

import "./compare.mjs";
import { watched } from "./context.mjs";
import "./errors.mjs";
import { api } from "./host.mjs";
import "./progress.mjs";
import { listenForReports } from "./reports.mjs";
import * as tokens from "./tokens.mjs";

export { drawStrip } from "./blocks.mjs";
export { watched } from "./context.mjs";
export { forget } from "./host.mjs";
export { settingsChanged } from "./tokens.mjs";

const PARTS = [tokens];
// What only one node needs comes with the first of that kind.
const LATER = { FlowMatchingSampler: () => import("./curve.mjs") };

api.addEventListener("graphChanged", watched);
listenForReports(watched);

export function nodeCreated(node) {
  for (const part of PARTS) part.nodeCreated(node);
  LATER[node.comfyClass]?.().then(
    (part) => part.nodeCreated(node),
    (error) => console.error("MMDiT: a script did not load.", error),
  );
}
