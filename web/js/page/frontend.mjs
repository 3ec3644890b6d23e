// What the strips need of ComfyUI's page, in one place: undo, canvas gestures, themes, requests.

import { api } from "../../../../scripts/api.js";
import { app } from "../../../../scripts/app.js";
import { addElement, setting } from "../mmdit.js";

export { api, app, setting };

const styles = new Map(); // name of a style sheet -> the promise that it is there

/** Load a style sheet of css/, once; resolves when it is there, or cannot be had. */
export function addStyles(name) {
  if (!styles.has(name)) {
    const link = document.createElement("link");
    styles.set(name, new Promise((resolve) => (link.onload = link.onerror = resolve)));
    Object.assign(link, { rel: "stylesheet", href: new URL(`../../css/${name}`, import.meta.url) });
    document.head.append(link);
  }
  return styles.get(name);
}

/** Make the graph as it is now a step that Ctrl+Z goes back to. */
export function remember() {
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
  (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker);
}

/** Whether nodes are drawn as HTML (Nodes 2.0) and not on the canvas. */
export function drawnAsHtml() {
  return Boolean(globalThis.LiteGraph?.vueNodesMode);
}

export function make(tag, className, text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

/** As addElement, for an element that leaves to the canvas what it does not use. */
export function addHtml(node, name, type, element, height, options) {
  passToCanvas(element);
  return addElement(node, name, type, element, height, options);
}

/** Give the canvas what an element above it does not use: wheel to zoom, middle button to pan. */
export function passToCanvas(element) {
  element.addEventListener(
    "wheel",
    (event) => {
      if (drawnAsHtml()) return; // it gets there by itself
      event.preventDefault();
      app.canvas.processMouseWheel(event);
    },
    { passive: false },
  );
  const whileMiddle = (kind, handle, held) =>
    element.addEventListener(kind, (event) => {
      if (held(event)) app.canvas[handle](event);
    });
  whileMiddle("pointerdown", "processMouseDown", (event) => event.button === 1);
  whileMiddle("pointermove", "processMouseMove", (event) => event.buttons & 4);
  whileMiddle("pointerup", "processMouseUp", (event) => event.button === 1);
}

/** Do something more after a method of a host's object. */
export function after(object, method, more) {
  const before = object[method];
  object[method] = function (...values) {
    const result = before?.apply(this, values);
    more.apply(this, values);
    return result;
  };
}

/** The node of an execution: "5", or "12:5" for node 5 in the subgraph that is node 12. */
export function nodeOfExecution(execution) {
  let graph = app.rootGraph ?? app.graph;
  let node = null;
  for (const id of String(execution).split(":")) {
    node = graph?.getNodeById(id) ?? graph?.getNodeById(Number(id)) ?? null;
    graph = node?.subgraph;
  }
  return node;
}

/** The JSON that an address answers with, null where it has none or cannot be reached. Args: body, what to post there. */
export async function request(address, body) {
  try {
    const options = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
    const response = await api.fetchApi(address, options);
    return response.ok ? await response.json() : null;
  } catch {
    return null;
  }
}

const answers = new Map(); // address -> promise of its answer

/** A route of this pack, asked once for each address; null where the server does not know it or cannot be reached. */
export function ask(address) {
  if (!answers.has(address)) {
    const answer = request(address);
    answers.set(address, answer);
    // A server that was away may be back.
    answer.then((found) => found === null && answers.delete(address));
  }
  return answers.get(address);
}

/** Forget the answers: the files may be others now. */
export function forget() {
  answers.clear();
}
