// What every node of the pack needs, loaded with the first one: modules that listen to the server and the frontend.
// mmdit.js loads the other modules by node type; a module that adds something to its nodes exports nodeCreated(node).

import "./panels/compare.mjs";
import "./panels/errors.mjs";
import "./panels/notes.mjs";
import "./panels/progress.mjs";
import "./panels/run_text.mjs";
import * as fold from "./panels/fold.mjs";
import * as seed from "./panels/seed.mjs";

export { clearRequests } from "./page/frontend.mjs";

export function nodeCreated(node) {
  seed.nodeCreated(node);
  fold.nodeCreated(node);
}
