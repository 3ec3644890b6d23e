// The texts of these modules in each language. The nodes' own texts, such as names of inputs, are in locales/.

import { app } from "./page/frontend.mjs";

const percent = (fraction) => `${Math.round(100 * fraction)}%`;
const signed = (points) => (points > 0 ? `+${points}` : `${points}`);

const en = {
  madeFor: (text) => `Made for ${text}`,

  skip: "skip",
  boost: "boost",
  disable: "disable",
  prompt: "prompt",
  analyse: "analyse",
  block: (number) => `block ${number}`,
  blockOf: (number, kind, own) => `block ${number} (${kind} ${kind[0]}${own})`,
  strength: (action, strength) => `${action} × ${strength}`,
  effect: (effect) => `effect ${effect}`,
  chosen: (name, count, total) => `${name}: ${count} of ${total} chosen`,
  row: (first, last) => `blocks ${first} to ${last}`,
  kindAt: (kind, block) => `${kind} ${block}`,
  kinds: (spans) => spans.map(({ kind, first, last }) => `${kind} ${first}–${last}`).join(", "),
  refiners: (names) => `${names.join(" and ")} refiner${names.length > 1 ? "s" : ""} not counted`,
  guess: (total) => `model unknown: ${total} blocks are a guess`,
  nothing: "none",
  fromLink: "linked",
  whenRun: "counted during the run",
  planCost: (plan) =>
    plan
      ? [
          `computes ${percent(plan.work)} of the predictions in ${plan.steps} steps`,
          `small model: ${signed(plan.points)} of 100 images right (${signed(plan.low)} to ${signed(plan.high)})`,
        ]
      : ["computes everything"],
  fromPreset: "from the preset",
  preset: (name) => `preset: ${name}`,
  wrong: ({ message }) => message, // the same as the server's
  beyond: (numbers, { total }) =>
    `${/[-,]/.test(numbers) ? `blocks ${numbers} are` : `block ${numbers} is`} not in this model (0 to ${total - 1})`,

  count: (label, used) => `${label} ${used}`,
  cut: (count) => ` +${count} cut`,
  chunks: (count) => ` in ${count}`,
  cutTexts: (texts) => `Cut: ${texts}`,
  tooLong: "Longer than any text in SD3's training: artefacts at the edges are likely.",
  step: (step, of) => `step ${step} of ${of}`,
  pace: (each, left) => `, ${each} s per step, ${left} s left`,
  colon: ": ",
};

const WRONG = {
  grammar: "无法识别。可以写：0-5, 9, 12-、all、even、odd、early、middle、late、first 25%、!3",
  noStrength: "这里不能写强度，只写块号即可",
  strength: "冒号后的强度须为不小于 0 的数，如 3:1.5",
  percent: "百分比不能超过 100%",
  backwards: "范围写反了，请把较小的块号写在前面",
};

// Kinds of blocks and of refiners, as the server names them.
const KINDS = { double: "双流", single: "单流", joint: "联合", main: "主干", blocks: "块" };
const REFINERS = { noise: "噪声", context: "上下文", reference: "参考图" };
const kindName = (kind) => KINDS[kind] ?? kind;

const zh = {
  madeFor: (text) => `适用于 ${text}`,

  skip: "跳过",
  boost: "增强",
  disable: "屏蔽文本",
  prompt: "换提示词",
  analyse: "分析",
  block: (number) => `块 ${number}`,
  blockOf: (number, kind, own) => `块 ${number}（${kindName(kind)} ${kind[0]}${own}）`,
  strength: (action, strength) => `${action} × ${strength}`,
  effect: (effect) => `影响 ${effect}`,
  chosen: (name, count, total) => `${name}：已选 ${count} / ${total}`,
  row: (first, last) => `块 ${first} 到 ${last}`,
  kindAt: (kind, block) => `${kindName(kind)} ${block}`,
  kinds: (spans) => spans.map(({ kind, first, last }) => `${kindName(kind)} ${first}–${last}`).join("，"),
  refiners: (names) => `${names.map((name) => REFINERS[name] ?? name).join("、")}精炼块不计入`,
  guess: (total) => `模型未知：${total} 块只是猜测`,
  nothing: "未选",
  fromLink: "来自连线",
  whenRun: "运行时计数",
  planCost: (plan) =>
    plan
      ? [
          `${plan.steps} 步中计算 ${percent(plan.work)} 的预测`,
          `小模型：每 100 张图中正确数变化 ${signed(plan.points)} 张（${signed(plan.low)} 到 ${signed(plan.high)}）`,
        ]
      : ["计算全部预测"],
  fromPreset: "来自预设",
  preset: (name) => `预设：${name}`,
  wrong: ({ part, kind }) => `“${part}”：${WRONG[kind]}`,
  beyond: (numbers, { total }) => `该模型没有块 ${numbers}（编号 0 到 ${total - 1}）`,

  count: (label, used) => `${label} ${used}`,
  cut: (count) => ` 截去 ${count}`,
  chunks: (count) => ` 分 ${count} 段`,
  cutTexts: (texts) => `截去：${texts}`,
  tooLong: "比 SD3 训练时的任何文本都长：画面边缘可能出现瑕疵。",
  step: (step, of) => `第 ${step} / ${of} 步`,
  pace: (each, left) => `，每步 ${each} 秒，还需 ${left} 秒`,
  colon: "：",
};

export const LANGUAGES = { en, zh };

const files = new Map(); // folder of web/ -> promise of its texts

/** The texts in ComfyUI's language; English if there is no translation. */
export function words(languages = LANGUAGES) {
  return languages[language()] ?? languages.en;
}

/** A promise of the texts of a folder of web/ in ComfyUI's language, or of null on failure; null for English. */
export function localTexts(folder) {
  if (language() !== "zh") return null;
  if (!files.has(folder)) {
    const address = new URL(`../${folder}/zh.json`, import.meta.url);
    files.set(folder, fetch(address).then((answer) => answer.json()).catch(() => null));
  }
  return files.get(folder);
}

/** Call show(text) with a message of the server in ComfyUI's language; at once if that is English. */
export function localized(text, show) {
  const loading = localTexts("messages");
  if (!loading) return show(text);
  const translated = Promise.all([loading, import("./messages.mjs")]);
  translated.then(([texts, { localMessage }]) => show(texts ? localMessage(text, texts) : text), () => show(text));
}

function language() {
  return app.extensionManager?.setting?.get("Comfy.Locale");
}
