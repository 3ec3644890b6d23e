// ComfyUI's frontend, for the other modules: undo, canvas gestures, style sheets, requests.

import { api } from "../../../../scripts/api.js";
import { app } from "../../../../scripts/app.js";
import { addElement, ours, setting } from "../mmdit.js";

export { api, app, ours, setting };

const TEXT_PREVIEW = "$$node-text-preview"; // the frontend's name for the widget with a run's text

const styles = new Map(); // name -> promise

/** Load a style sheet of css/, once. Returns: a promise, resolved on success and failure. */
export function addStyles(name) {
  if (!styles.has(name)) {
    const link = document.createElement("link");
    styles.set(name, new Promise((resolve) => (link.onload = link.onerror = resolve)));
    Object.assign(link, { rel: "stylesheet", href: new URL(`../../css/${name}`, import.meta.url) });
    document.head.append(link);
  }
  return styles.get(name);
}

/** Record the present graph as one step of undo. */
export function recordUndo() {
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
  (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker);
}

/** True if nodes are drawn as HTML (Nodes 2.0), false if on the canvas. */
export function drawnAsHtml() {
  return Boolean(globalThis.LiteGraph?.vueNodesMode);
}

export function make(tag, className, text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

/** As addElement, with wheel and middle button forwarded to the canvas. */
export function addHtml(node, name, type, element, height, options) {
  forwardToCanvas(element);
  return addElement(node, name, type, element, height, options);
}

/** Forward the wheel (zoom) and the middle button (pan) to the canvas. */
export function forwardToCanvas(element) {
  element.addEventListener(
    "wheel",
    (event) => {
      if (drawnAsHtml()) return; // the event bubbles to the canvas
      event.preventDefault();
      app.canvas.processMouseWheel(event);
    },
    { passive: false },
  );
  const forwardMiddle = (kind, handle, matches) =>
    element.addEventListener(kind, (event) => {
      if (matches(event)) app.canvas[handle](event);
    });
  forwardMiddle("pointerdown", "processMouseDown", (event) => event.button === 1);
  forwardMiddle("pointermove", "processMouseMove", (event) => event.buttons & 4);
  forwardMiddle("pointerup", "processMouseUp", (event) => event.button === 1);
}

/** Call `more` after each call of a method of one of ComfyUI's objects. */
export function after(object, method, more) {
  const original = object[method];
  object[method] = function (...values) {
    const result = original?.apply(this, values);
    more.apply(this, values);
    return result;
  };
}

/** Remove the frontend's own widget with a run's text, if it is there. */
export function removeTextPreview(node) {
  const widget = node.widgets?.find(({ name }) => name === TEXT_PREVIEW);
  if (widget) node.removeWidget(widget);
}

/** Whether the input of a node's widget is linked. */
export function isLinked(node, name) {
  return Boolean(node.inputs?.some(({ widget, link }) => widget?.name === name && (link ?? null) !== null));
}

/** The node of an execution id: "5", or "12:5" for node 5 in the subgraph of node 12. */
export function nodeOfExecution(executionId) {
  let graph = app.rootGraph ?? app.graph;
  let node = null;
  for (const id of String(executionId).split(":")) {
    node = graph?.getNodeById(id) ?? graph?.getNodeById(Number(id)) ?? null;
    graph = node?.subgraph;
  }
  return node;
}

const workflows = new Map(); // prompt id -> the workflow that was open when it was queued
const changes = []; // functions, see changeJobs
let running; // prompt id
const { queuePrompt } = api;
api.queuePrompt = async function (number, job, ...rest) {
  const workflow = openWorkflow();
  const changed = changes.reduce((now, change) => change(now), job);
  const answer = await queuePrompt.call(this, number, changed, ...rest);
  workflows.set(answer?.prompt_id, workflow);
  return answer;
};
api.addEventListener("execution_start", ({ detail }) => (running = detail.prompt_id));

/** Queue change(job) in place of each job, { output, workflow }. */
export function changeJobs(change) {
  changes.push(change);
}

export function openWorkflow() {
  return app.extensionManager?.workflow?.activeWorkflow;
}

/** The workflow of the running prompt; undefined if this page did not queue it. */
export function runningWorkflow() {
  return workflows.get(running);
}

/** The node of an execution id of the running prompt; null while another workflow is open, whose nodes can have its ids. */
export function nodeOfRun(executionId) {
  const workflow = runningWorkflow();
  return workflow && workflow !== openWorkflow() ? null : nodeOfExecution(executionId);
}

/** The JSON at an address, null on failure. Args: body, sent by POST; without it: GET. */
export async function request(address, body) {
  try {
    const options = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
    const response = await api.fetchApi(address, options);
    return response.ok ? await response.json() : null;
  } catch {
    return null;
  }
}

const queues = new WeakMap(); // owner -> { running, promise of its request in flight; newest, number of its last request }

/**
 * As request, one at a time for each owner: of those that are made meanwhile only the last is sent, and the others give
 * undefined.
 */
export async function requestLatest(owner, address, body) {
  if (!queues.has(owner)) queues.set(owner, { running: null, newest: 0 });
  const queue = queues.get(owner);
  const number = (queue.newest += 1);
  await queue.running;
  if (number !== queue.newest) return undefined;
  queue.running = request(address, body);
  return queue.running;
}

const runs = new Map(); // prompt id -> whether this page queued it
api.addEventListener("execution_start", ({ detail }) => runs.set(detail.prompt_id, true));

/** Call run(detail) on events of this page's runs. ComfyUI sends those of a run without a client to all pages. */
export function onOwnRun(kind, run) {
  api.addEventListener(kind, ({ detail }) => {
    const id = detail.prompt_id;
    if (!runs.has(id)) void lookUp(id); // such as after a reload of the page: the next events are known
    if (runs.get(id)) run(detail);
  });
}

async function lookUp(id) {
  runs.set(id, false);
  const queue = await request("/queue");
  const own = ([, prompt, , extra]) => prompt === id && extra?.client_id === api.clientId;
  runs.set(id, Boolean(queue?.queue_running?.some(own)));
}

const responses = new Map(); // address -> promise of its JSON

/** As request, once for each address; a failed request is sent again next time. */
export function requestOnce(address) {
  if (!responses.has(address)) {
    const response = request(address);
    responses.set(address, response);
    response.then((found) => found === null && responses.delete(address));
  }
  return responses.get(address);
}

const refreshes = new Set(); // functions to call when the responses were dropped

/** Drop the stored responses: the files may have changed. */
export function clearRequests() {
  responses.clear();
  for (const run of refreshes) run();
}

/** Call run() now and after each refresh of the page's lists, while a node is in a graph. */
export function onRefresh(node, run) {
  const begin = () => {
    refreshes.add(run);
    run();
  };
  begin();
  after(node, "onAdded", begin);
  after(node, "onRemoved", () => refreshes.delete(run));
}
