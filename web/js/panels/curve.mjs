// FlowMatchingSampler: a plot of its sigmas, updated while its inputs change, with a band for cfg and for each block node
// upstream that shows the steps in which it is active. The server computes both with the sampler's code.

import { addStyles, after, api, make, nodeOfRun, onOwnRun, requestLatest } from "../page/frontend.mjs";
import { Note } from "./note.mjs";
import { Blocks, read } from "../widgets/grammar.mjs";
import { blocksIn, modelFile, sourceOf, valueOf as valueBefore } from "../page/upstream.mjs";
import { localized, words } from "../words.mjs";

const INPUTS = [
  "steps", "cfg", "solver", "schedule", "shift", "denoise", "cfg_start", "cfg_end", "start_step", "end_step",
  "custom_sigmas", "cfg_curve", "size_shift",
]; // prettier-ignore
const CONTROLS = { BlockSkip: "skip", TextBoost: "boost", TextDisable: "disable", BlockPrompt: "prompt" };
const WINDOW = ["start_percent", "end_percent", "fade"];
const SHIFTERS = new Set(["ModelSamplingSD3", "ModelSamplingAuraFlow"]);
const UNKNOWN_SHIFTERS = new Set(["ModelSamplingFlux"]); // its shift depends on more than one input
const INACTIVE = new Set([2, 4]); // modes: muted, bypassed
const ANY_MODEL = new Blocks(1000, 1000); // more blocks than an unknown model has
const PAUSE = 120; // ms without a change before a request
const PLOT_LINES = 5; // of a note's lines
const MAX_BANDS = 6;
const MAX_DOTS = 40;
const NO_PRESET = "none";

const TEXTS = {
  en: {
    linked: (name) => `The curve appears after a run: ${name} is linked.`,
    shift: "The curve appears after a run: the model is unknown. Set shift to see it now.",
    size: "The curve appears after a run: the image size is unknown.",
    levels: (steps, shift, own) => `${steps} steps, shift ${shift}${own ? ", the model's" : ""}`,
    part: (first, last, steps) => `, runs ${first} to ${last} of ${steps}`,
    adaptive: ", chooses its own steps in between",
    level: (step, level) => `step ${step}: sigma ${level}`,
    cfg: (cfg) => `cfg ${cfg}`,
    control: (action, blocks) => `${action} ${blocks}`,
    active: (label, first, last) => `${label} in steps ${first} to ${last}`,
    never: (label) => `${label} in no step`,
    unknown: (label) => `${label}: window is linked`,
    more: (count) => `${count} more`,
    stop: ". ",
    label: (levels, from, to, active) => `Sigmas: ${levels}, from ${from} to ${to}. ${active}`,
  },
  zh: {
    linked: (name) => `运行后显示曲线：${name} 来自连线。`,
    shift: "运行后显示曲线：模型未知。设置“偏移”可立即显示。",
    size: "运行后显示曲线：图像尺寸未知。",
    levels: (steps, shift, own) => `${steps} 步，偏移 ${shift}${own ? "（模型自带）" : ""}`,
    part: (first, last, steps) => `，运行第 ${first} 到 ${last} 步，共 ${steps} 步`,
    adaptive: "，中间自行选择步长",
    level: (step, level) => `第 ${step} 步：sigma ${level}`,
    cfg: (cfg) => `CFG ${cfg}`,
    control: (action, blocks) => `${action} ${blocks}`,
    active: (label, first, last) => `${label}：第 ${first} 到 ${last} 步`,
    never: (label) => `${label}：不在任何一步`,
    unknown: (label) => `${label}：区间来自连线`,
    more: (count) => `另有 ${count} 项`,
    stop: "。",
    label: (levels, from, to, active) => `sigma：${levels}，从 ${from} 到 ${to}。${active}`,
  },
};

// The SVG namespace, read from the browser: it is a URL, and the modules contain none.
const SVG = new DOMParser().parseFromString("<svg>", "text/html").querySelector("svg").namespaceURI;

const curves = new Set();
const followed = new WeakSet();
const modes = new WeakSet(); // nodes whose mode is followed

await addStyles("curve.css");

const scheduleAll = () => curves.forEach((curve) => curve.schedule());
api.addEventListener("graphChanged", scheduleAll);
onOwnRun("progress", (detail) => {
  const node = nodeOfRun(detail.node);
  curves.forEach((curve) => curve.node === node && curve.showProgress(detail.value));
});
for (const end of ["execution_success", "execution_error", "execution_interrupted"])
  api.addEventListener(end, () => curves.forEach((curve) => curve.showProgress(null)));

export function nodeCreated(node) {
  const curve = new Curve(node);
  const begin = () => curves.add(curve) && curve.schedule();
  begin();
  after(node, "onAdded", begin);
  after(node, "onRemoved", () => curves.delete(curve));
  for (const event of ["onConfigure", "onConnectionsChange"]) after(node, event, scheduleAll);
  for (const widget of node.widgets) if (INPUTS.includes(widget.name)) follow(widget, "callback");
}

/** Update the curves after each call of a method of a node or widget. */
function follow(object, method) {
  if (!object || followed.has(object)) return;
  followed.add(object);
  after(object, method, scheduleAll);
}

/** As upstream.mjs has it; the curves follow every widget that it depends on. */
const valueOf = (node, name) => valueBefore(node, name, (_, widget) => follow(widget, "callback"));

/** Update the curves when a node is muted, bypassed or activated: no event comes of it in every renderer. */
function followMode(node) {
  if (modes.has(node)) return;
  modes.add(node);
  let value = node.mode;
  const { get = () => value, set = (now) => (value = now) } = Object.getOwnPropertyDescriptor(node, "mode") ?? {};
  Object.defineProperty(node, "mode", {
    configurable: true,
    enumerable: true,
    get,
    set(now) {
      set.call(node, now);
      scheduleAll();
    },
  });
}

class Curve {
  constructor(node) {
    this.node = node;
    this.note = new Note(node, "curve");
    this.key = ""; // of the last request
    this.updates = 0;
    this.timer = 0;
    this.data = null; // of the drawn curve
  }

  schedule() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => void this.update(), PAUSE);
  }

  async update() {
    const { node } = this;
    if (!node.graph) return;
    const update = (this.updates += 1);
    const { linked, body, bands } = await stateOf(node);
    if (update !== this.updates || !node.graph) return; // outdated: a newer update follows
    const key = JSON.stringify([linked, body, bands.map(({ label }) => label), words(TEXTS).shift]);
    if (key === this.key) return;
    this.key = key;
    const data = linked ? { message: words(TEXTS).linked(linked) } : await requestLatest(this, "/mmdit/curve", body);
    if (key !== this.key || !node.graph) return; // outdated: a newer request follows
    if (!data) this.key = ""; // failed: try again at the next change
    this.show(data, bands);
  }

  show(data, bands) {
    this.data = data?.points ? data : null;
    const { note } = this;
    if (this.data) {
      const rows = rowsOf(data, bands);
      note.show(draw(data, rows), PLOT_LINES + rows.length + 1, "curve");
    } else {
      const text = data?.error ?? data?.message ?? words(TEXTS)[data?.missing];
      if (text) localized(text, (local) => this.data || note.show([local], 2, data.error ? "bad" : ""));
      else note.hide();
    }
    note.widget?.element.removeAttribute("title"); // a tooltip would cover the curve
  }

  /** Mark the progress of a run; step null: none is running. */
  showProgress(step) {
    const element = this.note.widget?.element;
    if (!this.data || this.data.adaptive || !element) return;
    mark(element, this.data, step === null ? null : this.data.first + step);
  }
}

/** What the curve depends on: { linked, the first input with an unknown linked value; body of the request; bands }. */
async function stateOf(node) {
  const inputs = Object.fromEntries(INPUTS.map((name) => [name, valueOf(node, name)]));
  const sigmas = node.inputs.find((slot) => slot.name === "sigmas");
  const linked = (sigmas?.link ?? null) !== null ? "sigmas" : INPUTS.find((name) => inputs[name] === undefined);
  let shift = null; // of the nearest node upstream that sets it; undefined: unknown
  const controls = []; // from the loader on
  const file = modelFile(node, (source, widget) => {
    follow(source, "onConnectionsChange");
    for (const each of source.widgets ?? []) follow(each, "callback");
    followMode(source);
    if (INACTIVE.has(source.mode)) return;
    if (SHIFTERS.has(source.type) && shift === null) shift = valueOf(source, "shift");
    if (UNKNOWN_SHIFTERS.has(source.type) && shift === null) shift = undefined;
    if (CONTROLS[source.type]) controls.unshift(source);
  });
  const model = await blocksIn(file);
  const bands = controls.map((control) => bandOf(control, model)).filter(Boolean);
  const known = shift !== undefined;
  return {
    linked,
    bands: [{ action: "cfg", label: words(TEXTS).cfg(inputs.cfg) }, ...bands],
    body: {
      inputs,
      model: known ? file : null,
      model_shift: shift ?? null,
      ...(inputs.size_shift === "off" ? {} : sizeOf(node)),
      windows: bands.filter((band) => band.window).map(({ window }) => window),
    },
  };
}

/** The band of a block node; null if its text is invalid or names no block. Args: model, its Blocks; null: unknown. */
function bandOf(node, model) {
  const [start, end, fade] = WINDOW.map((name) => valueOf(node, name));
  const preset = valueOf(node, "preset") ?? NO_PRESET;
  const action = CONTROLS[node.type];
  const text = preset === NO_PRESET ? valueOf(node, "blocks") : undefined; // undefined: linked
  const { chosen, errors } = read(text ?? "all", model ?? ANY_MODEL, { strengths: action === "boost" });
  if (!chosen.size || errors.length) return null;
  const blocks = preset === NO_PRESET ? (text?.trim() ?? "…") : preset;
  return {
    action,
    label: words(TEXTS).control(words()[action], blocks),
    window: start === undefined || end === undefined ? null : { start, end, fade: fade ?? "constant" },
  };
}

/** The image size, if the node that makes the latent has such inputs. */
function sizeOf(node) {
  const slot = node.inputs.findIndex((each) => each.name === "latent_image");
  const source = slot < 0 ? null : sourceOf(node, slot);
  for (const each of source?.widgets ?? []) follow(each, "callback");
  return source ? { width: valueOf(source, "width") ?? null, height: valueOf(source, "height") ?? null } : {};
}

/** The bands with their strengths per step: cfg's first, then the block nodes' from the loader on. */
function rowsOf(data, bands) {
  const windows = data.windows.values();
  const rows = bands
    .map((band) => ({ ...band, strengths: band.action === "cfg" ? data.cfg : band.window ? windows.next().value : null }))
    .filter(({ action, strengths }) => strengths || action !== "cfg"); // cfg 1 has no effect
  if (rows.length <= MAX_BANDS) return rows;
  const rest = rows.length - MAX_BANDS + 1;
  return [...rows.slice(0, MAX_BANDS - 1), { action: "more", label: words(TEXTS).more(rest), strengths: null }];
}

function draw(data, rows) {
  const text = words(TEXTS);
  const { points, first, last, steps, shift, own, adaptive } = data;
  const part = first > 0 || last < steps ? text.part(first, last, steps) : "";
  const levels = `${text.levels(steps, shift, own)}${part}${adaptive ? text.adaptive : ""}`;
  const active = rows.map((row) => describe(data, row) + text.stop).join("").trim();
  const figure = make("div", "mmdit-figure");
  figure.setAttribute("role", "img");
  figure.ariaLabel = text.label(levels, points[0][1], points.at(-1)[1], active);
  const foot = make("div", "mmdit-levels", levels);
  figure.append(plot(data), ...rows.map((row) => drawBand(data, row)));
  figure.addEventListener("pointermove", ({ clientX }) => {
    const { left, width } = figure.getBoundingClientRect();
    const at = Math.round(((clientX - left) / width) * steps);
    const [step, level] = points.reduce((best, point) =>
      Math.abs(point[0] - at) < Math.abs(best[0] - at) ? point : best,
    );
    mark(figure, data, step);
    foot.textContent = text.level(step, Number(level.toFixed(4)));
  });
  figure.addEventListener("pointerleave", () => {
    mark(figure, data, null);
    foot.textContent = levels;
  });
  return [figure, foot];
}

/** The sigmas as a line: solid where steps are run, faint elsewhere. */
function plot({ points, first, last, steps }) {
  const line = (some) => `M${some.map(([step, level]) => `${step},${1 - level}`).join("L")}`;
  const run = points.filter(([step]) => step >= first && step <= last);
  const drawing = svg("svg", { class: "mmdit-plot", viewBox: `0 0 ${steps} 1`, preserveAspectRatio: "none" });
  drawing.append(
    svg("path", { class: "grid", d: `M0,.25H${steps}M0,.5H${steps}M0,.75H${steps}M0,1H${steps}` }),
    svg("path", { class: "rest", d: line(points) }),
    svg("path", { class: "run", d: run.length ? line(run) : "" }),
    // A line of length 0 with round ends is a dot, however the drawing is stretched.
    svg("path", { class: "dots", d: steps > MAX_DOTS ? "" : run.map(([x, y]) => `M${x},${1 - y}h0`).join("") }),
    svg("path", { class: "mark", d: "" }),
  );
  return drawing;
}

function mark(element, { steps }, step) {
  const line = element.querySelector(".mark");
  line?.setAttribute("d", step === null ? "" : `M${Math.min(step, steps)},0V1`);
}

/** A bar for each active step, as high as the strength, and the label. */
function drawBand({ points, first, last, steps }, { action, label, strengths }) {
  const row = make("div", `mmdit-band ${action}`);
  const drawing = svg("svg", { viewBox: `0 0 ${steps} 1`, preserveAspectRatio: "none" });
  const bars = (strengths ?? []).map((strength, i) => {
    const [from, to] = [Math.max(first, points[i][0]), Math.min(last, points[i + 1][0])];
    return strength > 0 && to > from ? `M${from},1V${1 - strength}H${to}V1Z` : "";
  });
  drawing.append(svg("path", { d: bars.join("") }));
  row.append(drawing, make("span", "", strengths || action === "more" ? label : words(TEXTS).unknown(label)));
  return row;
}

/** The active steps of a band in words: "cfg 4.5 in steps 0 to 13". */
function describe({ points, first, last }, { label, strengths }) {
  const text = words(TEXTS);
  if (!strengths) return label;
  const active = points.slice(0, -1).filter(([step], i) => strengths[i] > 0 && step >= first && step < last);
  return active.length ? text.active(label, active[0][0], active.at(-1)[0]) : text.never(label);
}

function svg(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}
