// "Compare with and without" for the block nodes: a menu entry, a button of the selection toolbox, and a command that can
// be given a key. The rest is loaded with the first use.

import { app } from "../page/frontend.mjs";
import { words } from "../words.mjs";

const NODES = new Set(["BlockSkip", "TextBoost", "TextDisable", "BlockPrompt"]);
const COMMAND = "MMDiT.Compare";
const TEXTS = {
  en: { compare: "Compare with and without" },
  zh: { compare: "对比使用前后" },
};

app.registerExtension({
  name: "mmdit.compare",
  commands: [
    {
      id: COMMAND,
      label: words(TEXTS).compare,
      icon: "pi pi-images",
      function: () => compare([...(app.canvas.selectedItems ?? [])].filter(isControl)),
    },
  ],
  getSelectionToolboxCommands: (item) => (isControl(item) ? [COMMAND] : []),
  getNodeMenuItems: (node) =>
    isControl(node) ? [{ content: words(TEXTS).compare, callback: () => void compare([node]) }] : [],
});

function isControl(item) {
  return NODES.has(item?.comfyClass);
}

async function compare(nodes) {
  if (!nodes.length) return;
  try {
    const { compareWithout } = await import("./compare_run.mjs");
    await compareWithout(nodes);
  } catch (error) {
    console.error("MMDiT: the comparison failed.", error);
  }
}
