// Block Skip and Text Boost: the model and the evidence that a measured preset left in the node's input `made_for`.

import { after } from "../page/frontend.mjs";
import { Note } from "./note.mjs";
import { words } from "../words.mjs";

export function nodeCreated(node) {
  const widget = node.widgets?.find(({ name }) => name === "made_for");
  if (!widget) return;
  const note = new Note(node, "made_for_note");
  const show = () => {
    const text = String(widget.value ?? "").trim();
    if (text) note.showText(words().madeFor(text));
    else note.hide();
  };
  after(widget, "callback", show);
  after(node, "onConfigure", show);
}
