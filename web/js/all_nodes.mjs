// What comes with the first node of the pack and serves all of them: these listen to the server and the page. What only
// some nodes need comes with the first of these, as mmdit.js says; it exports nodeCreated(node) if it adds to them.

import "./panels/compare.mjs";
import "./panels/errors.mjs";
import "./panels/progress.mjs";

export { forget } from "./page/frontend.mjs";
