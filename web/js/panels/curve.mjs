// FlowMatchingSampler draws its noise levels while its dials are turned, and below them when cfg and the block controls
// upstream act. The server works them out with the sampler's own code; here they are asked for and drawn.

import { addStyles, after, api, make, nodeOfExecution, request } from "../page/frontend.mjs";
import { Note } from "./note.mjs";
import { behind, modelFile } from "../page/upstream.mjs";
import { words } from "../words.mjs";

const DIALS = [
  "steps", "cfg", "solver", "schedule", "shift", "denoise", "cfg_start", "cfg_end", "start_step", "end_step",
  "custom_sigmas", "cfg_curve", "size_shift",
]; // prettier-ignore
const CONTROLS = { BlockSkip: "skip", TextBoost: "boost", TextDisable: "disable", BlockPrompt: "prompt" };
const WINDOW = ["start_percent", "end_percent", "fade"];
const SHIFTERS = new Set(["ModelSamplingSD3", "ModelSamplingAuraFlow"]);
const UNKNOWN_SHIFTERS = new Set(["ModelSamplingFlux"]); // theirs depends on more than a dial
const PRIMITIVE = /^Primitive/; // the host's nodes that hold a value
const BYPASSED = 4;
const REST = 120; // ms without a change before the server is asked
const PLOT_LINES = 5; // of a note's lines
const MOST_BANDS = 6;
const MOST_DOTS = 40;
const NO_PRESET = "none";

const TEXTS = {
  en: {
    linked: (name) => `The curve shows after a run: ${name} comes from a link.`,
    shift: "The curve shows after a run: the model is not known here. Set shift to see it now.",
    size: "The curve shows after a run: the picture's size is not known here.",
    levels: (steps, shift, own) => `${steps} steps, shift ${shift}${own ? ", the model's" : ""}`,
    part: (first, last, steps) => `, runs ${first} to ${last} of ${steps}`,
    adaptive: ", steps of its own in between",
    level: (step, level) => `step ${step}: sigma ${level}`,
    cfg: (cfg) => `cfg ${cfg}`,
    control: (action, blocks) => `${action} ${blocks}`,
    acts: (label, first, last) => `${label} in steps ${first} to ${last}`,
    never: (label) => `${label} in no step`,
    unknown: (label) => `${label}: window from a link`,
    more: (count) => `${count} more`,
    stop: ". ",
    label: (levels, from, to, acts) => `Noise levels: ${levels}, from ${from} to ${to}. ${acts}`,
  },
  zh: {
    linked: (name) => `运行后显示曲线：${name} 由连线给出。`,
    shift: "运行后显示曲线：此处不知道是哪个模型。设置“偏移”即可现在看到。",
    size: "运行后显示曲线：此处不知道图像尺寸。",
    levels: (steps, shift, own) => `${steps} 步，偏移 ${shift}${own ? "（模型自带）" : ""}`,
    part: (first, last, steps) => `，运行第 ${first} 到 ${last} 步，共 ${steps} 步`,
    adaptive: "，中间的步长自行选择",
    level: (step, level) => `第 ${step} 步：sigma ${level}`,
    cfg: (cfg) => `CFG ${cfg}`,
    control: (action, blocks) => `${action} ${blocks}`,
    acts: (label, first, last) => `${label}：第 ${first} 到 ${last} 步`,
    never: (label) => `${label}：不在任何一步`,
    unknown: (label) => `${label}：区间由连线给出`,
    more: (count) => `另有 ${count} 项`,
    stop: "。",
    label: (levels, from, to, acts) => `噪声水平：${levels}，从 ${from} 到 ${to}。${acts}`,
  },
};

// Its name is an address that nothing is fetched from; here it is asked of the browser.
const SVG = new DOMParser().parseFromString("<svg>", "text/html").querySelector("svg").namespaceURI;

const curves = new Set();
const followed = new WeakSet();

await addStyles("curve.css");

const soon = () => curves.forEach((curve) => curve.soon());
api.addEventListener("graphChanged", soon);
api.addEventListener("progress", ({ detail }) => {
  const node = nodeOfExecution(detail.node);
  curves.forEach((curve) => curve.node === node && curve.reach(detail.value));
});
for (const end of ["execution_success", "execution_error", "execution_interrupted"])
  api.addEventListener(end, () => curves.forEach((curve) => curve.reach(null)));

export function nodeCreated(node) {
  const curve = new Curve(node);
  const begin = () => curves.add(curve) && curve.soon();
  begin();
  after(node, "onAdded", begin);
  after(node, "onRemoved", () => curves.delete(curve));
  for (const event of ["onConfigure", "onConnectionsChange"]) after(node, event, soon);
  for (const widget of node.widgets) if (DIALS.includes(widget.name)) follow(widget, "callback");
}

/** From now on, look at the curves again after this method of a node or widget. */
function follow(object, method) {
  if (!object || followed.has(object)) return;
  followed.add(object);
  after(object, method, soon);
}

class Curve {
  constructor(node) {
    this.node = node;
    this.note = new Note(node, "curve");
    this.asked = "";
    this.timer = 0;
    this.found = null; // what is drawn
  }

  soon() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => void this.update(), REST);
  }

  async update() {
    const { node } = this;
    if (!node.graph) return;
    const { lacking, question, bands } = look(node);
    const asked = JSON.stringify([lacking, question, bands.map(({ label }) => label), words(TEXTS).shift]);
    if (asked === this.asked) return;
    this.asked = asked;
    const found = lacking ? { words: words(TEXTS).linked(lacking) } : await request("/mmdit/curve", question);
    if (asked !== this.asked || !node.graph) return; // turned on meanwhile: another answer is on its way
    if (!found) this.asked = ""; // the server may be back
    this.show(found, bands);
  }

  show(found, bands) {
    this.found = found?.points ? found : null;
    const { note } = this;
    if (this.found) {
      const rows = rowsOf(found, bands);
      note.show(draw(found, rows), PLOT_LINES + rows.length + 1, "curve");
    } else {
      const said = found?.error ?? found?.words ?? words(TEXTS)[found?.missing];
      if (said) note.show([said], 2, found.error ? "bad" : "");
      else note.hide();
    }
    note.widget?.element.removeAttribute("title"); // it would hide the curve under the pointer
  }

  /** Mark how far a run is; null where none runs. */
  reach(step) {
    const element = this.note.widget?.element;
    if (!this.found || this.found.adaptive || !element) return;
    mark(element, this.found, step === null ? null : this.found.first + step);
  }
}

/** What the curve depends on: { lacking, the name of a dial that a link gives; question for the server; bands }. */
function look(node) {
  const dials = Object.fromEntries(DIALS.map((name) => [name, valueOf(node, name)]));
  const sigmas = node.inputs.find((slot) => slot.name === "sigmas");
  const lacking = (sigmas?.link ?? null) !== null ? "sigmas" : DIALS.find((name) => dials[name] === undefined);
  let shift = null; // of the nearest node on the way that sets one; undefined if it cannot be told
  const bands = [];
  const file = modelFile(node, (passed, widget) => {
    follow(passed, "onConnectionsChange");
    for (const each of passed.widgets ?? []) follow(each, "callback");
    if (passed.mode === BYPASSED) return;
    if (SHIFTERS.has(passed.type) && shift === null) shift = valueOf(passed, "shift");
    if (UNKNOWN_SHIFTERS.has(passed.type) && shift === null) shift = undefined;
    if (CONTROLS[passed.type]) bands.unshift(control(passed));
  });
  const known = shift !== undefined;
  return {
    lacking,
    bands: [{ action: "cfg", label: words(TEXTS).cfg(dials.cfg) }, ...bands.filter(Boolean)],
    question: {
      dials,
      model: known ? file : null,
      model_shift: shift ?? null,
      ...(dials.size_shift === "off" ? {} : sizeOf(node)),
      windows: bands.filter((band) => band?.window).map(({ window }) => window),
    },
  };
}

/** A block control as a band; null for one that has no blocks. */
function control(node) {
  const [start, end, fade] = WINDOW.map((name) => valueOf(node, name));
  const preset = valueOf(node, "preset") ?? NO_PRESET;
  const blocks = preset === NO_PRESET ? (valueOf(node, "blocks") ?? "…").trim() : preset;
  const action = CONTROLS[node.type];
  if (!blocks) return null;
  return {
    action,
    label: words(TEXTS).control(words()[action], blocks),
    window: start === undefined || end === undefined ? null : { start, end, fade: fade ?? "constant" },
  };
}

/** A dial's value; undefined where a link gives it and it is not known before the run. */
function valueOf(node, name) {
  const slot = node.inputs?.findIndex((each) => each.widget?.name === name) ?? -1;
  if (slot < 0 || (node.inputs[slot].link ?? null) === null)
    return node.widgets?.find((widget) => widget.name === name)?.value;
  const source = behind(node, slot)?.node;
  const widget = PRIMITIVE.test(source?.type) ? source.widgets?.[0] : null;
  follow(widget, "callback");
  return widget?.value;
}

/** The size of the picture, where a node with such dials makes the latent. */
function sizeOf(node) {
  const slot = node.inputs.findIndex((each) => each.name === "latent_image");
  const source = slot < 0 ? null : behind(node, slot)?.node;
  for (const each of source?.widgets ?? []) follow(each, "callback");
  return source ? { width: valueOf(source, "width") ?? null, height: valueOf(source, "height") ?? null } : {};
}

/** The bands with their shares: cfg's, then those of the controls in the order in which the model meets them. */
function rowsOf(found, bands) {
  const windows = found.windows.values();
  const rows = bands
    .map((band) => ({ ...band, shares: band.action === "cfg" ? found.cfg : band.window ? windows.next().value : null }))
    .filter(({ action, shares }) => shares || action !== "cfg"); // at 1 cfg does nothing
  if (rows.length <= MOST_BANDS) return rows;
  const rest = rows.length - MOST_BANDS + 1;
  return [...rows.slice(0, MOST_BANDS - 1), { action: "more", label: words(TEXTS).more(rest), shares: null }];
}

function draw(found, rows) {
  const text = words(TEXTS);
  const { points, first, last, steps, shift, own, adaptive } = found;
  const part = first > 0 || last < steps ? text.part(first, last, steps) : "";
  const levels = `${text.levels(steps, shift, own)}${part}${adaptive ? text.adaptive : ""}`;
  const acts = rows.map((row) => told(found, row) + text.stop).join("").trim();
  const figure = make("div", "mmdit-figure");
  figure.setAttribute("role", "img");
  figure.ariaLabel = text.label(levels, points[0][1], points.at(-1)[1], acts);
  const foot = make("div", "mmdit-levels", levels);
  figure.append(plot(found), ...rows.map((row) => strip(found, row)));
  figure.addEventListener("pointermove", ({ clientX }) => {
    const { left, width } = figure.getBoundingClientRect();
    const at = Math.round(((clientX - left) / width) * steps);
    const [step, level] = points.reduce((best, point) =>
      Math.abs(point[0] - at) < Math.abs(best[0] - at) ? point : best,
    );
    mark(figure, found, step);
    foot.textContent = text.level(step, Number(level.toFixed(4)));
  });
  figure.addEventListener("pointerleave", () => {
    mark(figure, found, null);
    foot.textContent = levels;
  });
  return [figure, foot];
}

/** The noise levels as a line: what is run of them strong, the rest faint. */
function plot({ points, first, last, steps }) {
  const line = (some) => `M${some.map(([step, level]) => `${step},${1 - level}`).join("L")}`;
  const run = points.filter(([step]) => step >= first && step <= last);
  const drawing = svg("svg", { class: "mmdit-plot", viewBox: `0 0 ${steps} 1`, preserveAspectRatio: "none" });
  drawing.append(
    svg("path", { class: "grid", d: `M0,.25H${steps}M0,.5H${steps}M0,.75H${steps}M0,1H${steps}` }),
    svg("path", { class: "rest", d: line(points) }),
    svg("path", { class: "run", d: run.length ? line(run) : "" }),
    // A line of no length with round ends is a dot, whatever the drawing is stretched to.
    svg("path", { class: "dots", d: steps > MOST_DOTS ? "" : run.map(([x, y]) => `M${x},${1 - y}h0`).join("") }),
    svg("path", { class: "mark", d: "" }),
  );
  return drawing;
}

function mark(element, { steps }, step) {
  const line = element.querySelector(".mark");
  line?.setAttribute("d", step === null ? "" : `M${Math.min(step, steps)},0V1`);
}

/** A bar over each step in which something acts, as high as its share, and what it is. */
function strip({ points, first, last, steps }, { action, label, shares }) {
  const row = make("div", `mmdit-band ${action}`);
  const drawing = svg("svg", { viewBox: `0 0 ${steps} 1`, preserveAspectRatio: "none" });
  const bars = (shares ?? []).map((share, i) => {
    const [from, to] = [Math.max(first, points[i][0]), Math.min(last, points[i + 1][0])];
    return share > 0 && to > from ? `M${from},1V${1 - share}H${to}V1Z` : "";
  });
  drawing.append(svg("path", { d: bars.join("") }));
  row.append(drawing, make("span", "", shares || action === "more" ? label : words(TEXTS).unknown(label)));
  return row;
}

/** When something acts, in words: "cfg 4.5 in steps 0 to 13". */
function told({ points, first, last }, { label, shares }) {
  const text = words(TEXTS);
  if (!shares) return label;
  const acting = points.slice(0, -1).filter(([step], i) => shares[i] > 0 && step >= first && step < last);
  return acting.length ? text.acts(label, acting[0][0], acting.at(-1)[0]) : text.never(label);
}

function svg(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}
