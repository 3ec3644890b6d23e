// The texts of the strip's menu in each language; for `words` in ../words.mjs.

const signed = (points) => (points > 0 ? `+${points}` : `${points}`);
const interval = ({ attribute, gain, low, high }, to) => `${attribute} ${signed(gain)} (${low}${to}${high})`;

export const MENU = {
  en: {
    all: "All",
    none: "None",
    invert: "Invert",
    early: "Early third",
    middle: "Middle third",
    late: "Late third",
    suggestion: (blocks) => `Use the suggestion: ${blocks}`,
    suggested: "Measured by Block Analysis on this model, on both branches",
    copy: "Copy text",
    paste: "Paste text",
    noPreset: "No preset",
    otherModel: (model) => `Published for ${model}; the connected model is another one.`,
    measuredOther: (model) => `For ${model}; the connected model is another one.`,
    linkedInput: "An input that it fills is linked.",
    measured: ({ file, evidence: found }) =>
      found
        ? `${file}: ${interval(found, " to ")}` +
          (found.random === null ? "" : `, random blocks ${signed(found.random)}`) +
          `; ${found.prompts} ${found.set} prompts, ${found.date}`
        : `${file}: saved, no score`,
    savePreset: "Save as preset…",
    cannotSave: "Choose blocks, without a published preset, and connect the loader of a known model.",
    presetName: "Name of the preset",
    nameTaken: (name) => `There is a file for "${name}". Choose another name`,
    presetSaved: (file) => `Saved as ${file} in ComfyUI's user folder`,
    notSaved: "The server did not answer.",
  },
  zh: {
    all: "全选",
    none: "全不选",
    invert: "反选",
    early: "前三分之一",
    middle: "中三分之一",
    late: "后三分之一",
    suggestion: (blocks) => `采用建议：${blocks}`,
    suggested: "由 Block Analysis 在该模型的两个分支上测得",
    copy: "复制文本",
    paste: "粘贴文本",
    noPreset: "不用预设",
    otherModel: (model) => `该预设针对 ${model} 发布，当前连接的是另一个模型。`,
    measuredOther: (model) => `该预设用于 ${model}，当前连接的是另一个模型。`,
    linkedInput: "它要填写的某个输入已连线。",
    measured: ({ file, evidence: found }) =>
      found
        ? `${file}：${interval(found, " 到 ")}` +
          (found.random === null ? "" : `，随机块 ${signed(found.random)}`) +
          `；${found.prompts} 条 ${found.set} 提示词，${found.date}`
        : `${file}：已保存，没有分数`,
    savePreset: "另存为预设…",
    cannotSave: "请选择块，不使用公开发表的预设，并连接已知模型的加载器。",
    presetName: "预设的名称",
    nameTaken: (name) => `“${name}”对应的文件已存在，请换一个名称`,
    presetSaved: (file) => `已保存为 ComfyUI 用户文件夹中的 ${file}`,
    notSaved: "服务器没有回应。",
  },
};
