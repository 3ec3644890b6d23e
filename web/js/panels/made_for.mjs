// Block Skip and Text Boost: the model and the evidence that a measured preset left in the node's input `made_for`, as a
// note; and the measured presets in the list of its input `preset`. Text Boost's rows.

import { after, onRefresh, requestOnce } from "../page/frontend.mjs";
import { Note } from "./note.mjs";
import { words } from "../words.mjs";

const ACTIONS = { BlockSkip: "skip", TextBoost: "boost" };
const NO_PRESET = "none";

export function nodeCreated(node) {
  const [madeFor, preset] = ["made_for", "preset"].map((name) => node.widgets?.find((each) => each.name === name));
  if (!madeFor) return;
  const note = new Note(node, "made_for_note");
  const show = () => {
    const text = String(madeFor.value ?? "").trim();
    if (text) note.showText(words().madeFor(text));
    else note.hide();
  };
  after(madeFor, "callback", show);
  after(node, "onConfigure", show);
  if (preset) list(node, preset);
  if (node.comfyClass === "TextBoost") void showRows(node);
}

/** Show the rows; their module is loaded with the first Text Boost. */
async function showRows(node) {
  try {
    (await import("./boost_rows.mjs")).show(node);
  } catch (error) {
    console.error("MMDiT: the rows' script did not load; their text is shown.", error);
  }
}

/** Add the measured presets to a list. The value of one is never kept: a workflow must run without the preset's file. */
function list(node, widget) {
  const published = widget.options?.values;
  if (!Array.isArray(published)) return;
  const measured = new Map(); // text in the list -> preset
  onRefresh(node, async () => {
    const known = (await requestOnce("/mmdit/presets")) ?? [];
    measured.clear();
    for (const preset of known) {
      if (!preset.widgets || preset.action !== ACTIONS[node.comfyClass]) continue;
      const taken = published.includes(preset.name) || measured.has(preset.name);
      measured.set(taken ? `${preset.name} (${preset.from})` : preset.name, preset);
    }
    widget.options.values = [...published, ...measured.keys()];
  });
  after(widget, "callback", (value) => {
    const preset = measured.get(value);
    if (!preset) return;
    widget.value = NO_PRESET;
    import("../widgets/measured_presets.mjs").then(({ choose }) => choose(node, preset));
  });
}
