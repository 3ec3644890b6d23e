// Queues the graph as it is once more, with and without a block control, and shows both pictures when they are there.

import { twice } from "./compare_graph.mjs";
import { addStyles, api, app, make, nodeOfExecution, request } from "../page/frontend.mjs";
import { words } from "../words.mjs";

const TEXTS = {
  en: {
    title: (names) => `With and without ${names}`,
    nothing: (names) => `No picture depends on ${names}: connect it to a sampler and a Save Image node, and switch it on.`,
    refused: "The server refused the graph.",
    failed: "The comparison ended with an error.",
    cancelled: "The comparison was cancelled.",
    running: (names) => `Rendering without ${names}`,
    cancel: "Cancel",
    busy: "A comparison is running already.",
  },
  zh: {
    title: (names) => `使用与不使用 ${names}`,
    nothing: (names) => `没有图像依赖于 ${names}：请把它连接到采样器和保存图像节点，并确认它已启用。`,
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
const LIFE = 6000; // ms that a message stands

let running = false;

/** Args: nodes of the page whose input `model` goes on to their output where they are left out. */
export async function compareWithout(nodes) {
  const text = words(TEXTS);
  if (running) return say("info", text.busy);
  running = true;
  const names = nodes.map((node) => node.title).join(", ");
  try {
    const { output, workflow } = await app.graphToPrompt();
    const prompt = asLastRun(output, await lastPrompt());
    const skipped = new Set(Object.keys(prompt).filter((id) => nodes.includes(nodeOfExecution(id))));
    const { prompt: both, pairs } = twice(prompt, skipped, picturesIn(prompt));
    if (!pairs.length) return say("warn", text.nothing(names));
    const ended = await queue(both, workflow, pairs.flat(), text, names);
    if (ended.kind === "cancelled") return say("info", text.cancelled);
    if (ended.kind === "failed") return say("error", text.failed, ended.words);
    const { show } = await import("./compare_view.mjs");
    show(text.title(names), pairs.flatMap(([a, b]) => together(ended.outputs[a], ended.outputs[b])));
  } finally {
    running = false;
  }
}

/** [id, slot] of each picture that an output node shows or saves. */
function picturesIn(prompt) {
  const found = Object.entries(prompt).flatMap(([id, { inputs }]) => {
    const node = nodeOfExecution(id);
    if (!node?.constructor?.nodeData?.output_node) return [];
    const images = (node.inputs ?? []).filter(({ name, type }) => type === "IMAGE" && Array.isArray(inputs[name]));
    return images.map(({ name }) => inputs[name]);
  });
  return [...new Map(found.map((source) => [String(source), source])).values()];
}

/**
 * The prompt with the seeds of the last run, where seeds change by themselves: with those that are in the widgets now,
 * no half of the comparison would be the picture that one sees, nor be in the cache.
 */
function asLastRun(prompt, last) {
  return Object.fromEntries(
    Object.entries(prompt).map(([id, node]) => {
      const before = last?.[id];
      if (before?.class_type !== node.class_type) return [id, node];
      const changing = (nodeOfExecution(id)?.widgets ?? []).filter((widget) =>
        widget.linkedWidgets?.some(({ name, value }) => name === CONTROL && value !== "fixed"),
      );
      const names = changing.map(({ name }) => name).filter((name) => typeof before.inputs[name] === "number");
      return [id, { ...node, inputs: { ...node.inputs, ...Object.fromEntries(names.map((n) => [n, before.inputs[n]])) } }];
    }),
  );
}

async function lastPrompt() {
  const [last] = Object.values((await request("/history?max_items=1")) ?? {});
  return last?.prompt?.[2];
}

/** Run a prompt. Returns: { kind: "done", outputs }, { kind: "failed", words } or { kind: "cancelled" }. */
async function queue(prompt, workflow, targets, text, names) {
  let id;
  try {
    ({ prompt_id: id } = await api.queuePrompt(0, { output: prompt, workflow }, { partialExecutionTargets: targets }));
  } catch (error) {
    return { kind: "failed", words: reasonOf(error) ?? text.refused };
  }
  const bar = statusBar(text.running(names), text.cancel, () => cancel(id));
  const tell = ({ detail }) => detail.prompt_id === id && bar.tell(words().step(detail.value, detail.max));
  api.addEventListener("progress", tell);
  try {
    return await endOf(id);
  } finally {
    api.removeEventListener("progress", tell);
    bar.remove();
  }
}

/** Waits for the end of a job, whatever ends it. */
function endOf(id) {
  return new Promise((resolve) => {
    const look = async () => {
      const queued = await request("/queue"); // first: a job that leaves it is in the history at once
      if (!queued || [...queued.queue_running, ...queued.queue_pending].some((item) => item[1] === id)) return;
      const record = (await request(`/history/${id}`))?.[id];
      for (const event of ENDS) api.removeEventListener(event, look);
      resolve(record ? endIn(record) : { kind: "cancelled" });
    };
    for (const event of ENDS) api.addEventListener(event, look);
    void look();
  });
}

function endIn({ status, outputs }) {
  if (status?.status_str === "success") return { kind: "done", outputs };
  const [kind, about] = status?.messages?.findLast(([name]) => ENDS.includes(name)) ?? [];
  return kind === "execution_interrupted" ? { kind: "cancelled" } : { kind: "failed", words: about?.exception_message };
}

function cancel(id) {
  void request("/queue", { delete: [id] });
  void request("/interrupt", { prompt_id: id });
}

/** The two previews' pictures, one beside the other. */
function together(a, b) {
  return (a?.images ?? []).map((image, i) => [image, b?.images?.[i]].map(address)).filter(([, other]) => other);
}

function address(image) {
  return image ? api.apiURL(`/view?${new URLSearchParams(image)}`) : null;
}

/** Why the server did not take a prompt. */
function reasonOf({ response, message }) {
  const [node] = Object.values(response?.node_errors ?? {});
  const error = node?.errors?.[0] ?? response?.error;
  return error ? [error.message, error.details].filter(Boolean).join(": ") : message;
}

function say(severity, summary, detail = "") {
  app.extensionManager.toast.add({ severity, summary, detail, life: LIFE });
}

/** What stands at the lower edge while a comparison runs. */
function statusBar(title, cancelled, onCancel) {
  const bar = make("div", "mmdit-running");
  bar.setAttribute("role", "status");
  const told = make("span", "", title);
  const button = make("button", "", cancelled);
  button.type = "button";
  button.addEventListener("click", onCancel);
  bar.append(told, button);
  document.body.append(bar);
  return { tell: (more) => (told.textContent = title + words().colon + more), remove: () => bar.remove() };
}
