// Queues the graph with and without a block node, and shows both images.

import { twice } from "./compare_graph.mjs";
import { addStyles, api, app, make, nodeOfExecution, request } from "../page/frontend.mjs";
import { RANDOM, withSeeds } from "./seed.mjs";
import { localized, words } from "../words.mjs";

const TEXTS = {
  en: {
    title: (names) => `With and without ${names}`,
    nothing: (names) => `No image depends on ${names}. Connect it to a sampler and a Save Image node, and enable it.`,
    refused: "The server refused the graph.",
    failed: "The comparison ended with an error.",
    cancelled: "The comparison was cancelled.",
    running: (names) => `Rendering without ${names}`,
    cancel: "Cancel",
    busy: "A comparison is already running.",
  },
  zh: {
    title: (names) => `使用与不使用 ${names}`,
    nothing: (names) => `没有图像依赖于 ${names}。请把它连接到采样器和保存图像节点，并启用它。`,
    refused: "服务器拒绝了此工作流。",
    failed: "对比因错误而结束。",
    cancelled: "对比已取消。",
    running: (names) => `正在生成不使用 ${names} 的图像`,
    cancel: "取消",
    busy: "已有对比正在进行。",
  },
};
await addStyles("popup.css");

const ENDS = ["execution_success", "execution_error", "execution_interrupted", "status"];
const CONTROL = "control_after_generate";
const TOAST_MS = 6000;

let running = false;

/** Args: nodes of the graph to leave out; their input `model` replaces their output. */
export async function compareWithout(nodes) {
  const text = words(TEXTS);
  if (running) return toast("info", text.busy);
  running = true;
  const names = nodes.map((node) => node.title).join(", ");
  try {
    const graph = await app.graphToPrompt();
    // Both halves get the same seeds.
    const { output: prompt, workflow } = withSeeds({ ...graph, output: asLastRun(graph.output, await lastPrompt()) });
    const skipped = new Set(Object.keys(prompt).filter((id) => nodes.includes(nodeOfExecution(id))));
    const { prompt: both, pairs } = twice(prompt, skipped, imagesIn(prompt));
    if (!pairs.length) return toast("warn", text.nothing(names));
    const ended = await queue(both, workflow, pairs.flat(), text, names);
    if (ended.kind === "cancelled") return toast("info", text.cancelled);
    if (ended.kind === "failed") return localized(ended.message ?? "", (why) => toast("error", text.failed, why));
    const { show } = await import("./compare_view.mjs");
    show(text.title(names), pairs.flatMap(([a, b]) => pairsOf(ended.outputs[a], ended.outputs[b])));
  } finally {
    running = false;
  }
}

/** [id, slot] of each image that an output node shows or saves. */
function imagesIn(prompt) {
  const found = Object.entries(prompt).flatMap(([id, { inputs }]) => {
    const node = nodeOfExecution(id);
    if (!node?.constructor?.nodeData?.output_node) return [];
    const images = (node.inputs ?? []).filter(({ name, type }) => type === "IMAGE" && Array.isArray(inputs[name]));
    return images.map(({ name }) => inputs[name]);
  });
  return [...new Map(found.map((source) => [String(source), source])).values()];
}

/**
 * The prompt with the seeds of the last run for seeds that change after each run. With the new seeds neither half would be
 * the image on screen, nor in the cache.
 */
function asLastRun(prompt, last) {
  return Object.fromEntries(
    Object.entries(prompt).map(([id, node]) => {
      const before = last?.[id];
      if (before?.class_type !== node.class_type) return [id, node];
      const changing = (nodeOfExecution(id)?.widgets ?? []).filter(
        ({ value: seed, linkedWidgets }) =>
          seed === RANDOM || linkedWidgets?.some(({ name, value }) => name === CONTROL && value !== "fixed"),
      );
      const names = changing.map(({ name }) => name).filter((name) => typeof before.inputs[name] === "number");
      return [id, { ...node, inputs: { ...node.inputs, ...Object.fromEntries(names.map((n) => [n, before.inputs[n]])) } }];
    }),
  );
}

/** The last prompt that this page queued, among the server's last runs. */
async function lastPrompt() {
  const runs = Object.values((await request("/history?max_items=16")) ?? {});
  return runs.findLast(({ prompt }) => prompt?.[3]?.client_id === api.clientId)?.prompt[2];
}

/** Run a prompt. Returns: { kind: "done", outputs }, { kind: "failed", message } or { kind: "cancelled" }. */
async function queue(prompt, workflow, targets, text, names) {
  let id;
  try {
    ({ prompt_id: id } = await api.queuePrompt(0, { output: prompt, workflow }, { partialExecutionTargets: targets }));
  } catch (error) {
    return { kind: "failed", message: reasonOf(error) ?? text.refused };
  }
  const bar = statusBar(text.running(names), text.cancel, () => cancel(id));
  const show = ({ detail }) => detail.prompt_id === id && bar.show(words().step(detail.value, detail.max));
  api.addEventListener("progress", show);
  try {
    return await endOf(id);
  } finally {
    api.removeEventListener("progress", show);
    bar.remove();
  }
}

/** Wait until a job ends, in any way. */
function endOf(id) {
  return new Promise((resolve) => {
    const check = async () => {
      const queued = await request("/queue"); // first: a job that leaves the queue is in the history at once
      if (!queued || [...queued.queue_running, ...queued.queue_pending].some((item) => item[1] === id)) return;
      const record = (await request(`/history/${id}`))?.[id];
      for (const event of ENDS) api.removeEventListener(event, check);
      resolve(record ? endIn(record) : { kind: "cancelled" });
    };
    for (const event of ENDS) api.addEventListener(event, check);
    void check();
  });
}

function endIn({ status, outputs }) {
  if (status?.status_str === "success") return { kind: "done", outputs };
  const [kind, details] = status?.messages?.findLast(([name]) => ENDS.includes(name)) ?? [];
  return kind === "execution_interrupted" ? { kind: "cancelled" } : { kind: "failed", message: details?.exception_message };
}

function cancel(id) {
  void request("/queue", { delete: [id] });
  void request("/interrupt", { prompt_id: id });
}

/** The two previews' images as pairs of addresses. */
function pairsOf(a, b) {
  return (a?.images ?? []).map((image, i) => [image, b?.images?.[i]].map(address)).filter(([, other]) => other);
}

function address(image) {
  return image ? api.apiURL(`/view?${new URLSearchParams(image)}`) : null;
}

/** The reason why the server refused a prompt. */
function reasonOf({ response, message }) {
  const [node] = Object.values(response?.node_errors ?? {});
  const error = node?.errors?.[0] ?? response?.error;
  return error ? [error.message, error.details].filter(Boolean).join(": ") : message;
}

function toast(severity, summary, detail = "") {
  app.extensionManager.toast.add({ severity, summary, detail, life: TOAST_MS });
}

/** A bar at the lower edge while a comparison runs. */
function statusBar(title, cancelLabel, onCancel) {
  const bar = make("div", "mmdit-running");
  bar.setAttribute("role", "status");
  const label = make("span", "", title);
  const button = make("button", "", cancelLabel);
  button.type = "button";
  button.addEventListener("click", onCancel);
  bar.append(label, button);
  document.body.append(bar);
  return { show: (more) => (label.textContent = title + words().colon + more), remove: () => bar.remove() };
}
