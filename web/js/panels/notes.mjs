// The notes and titles of the shipped workflows in the user's language, when one is opened. A text that is not as shipped is
// the user's own, and stays.

import { app, request } from "../page/frontend.mjs";
import { localTexts } from "../words.mjs";

const NOTE = "MarkdownNote";

app.registerExtension({ name: "mmdit.notes", afterConfigureGraph: translate });

async function translate() {
  const graph = app.graph;
  const note = graph._nodes.find(({ type }) => type === NOTE);
  const texts = note && (await localTexts("notes"));
  const found = texts?.notes[note.title];
  if (!found) return;
  const pack = decodeURIComponent(import.meta.url.split("/extensions/")[1].split("/js/")[0]);
  const shipped = await request(`/workflow_templates/${encodeURIComponent(pack)}/${found.file}.json`);
  const [english] = shipped?.nodes.find(({ type }) => type === NOTE)?.widgets_values ?? [];
  const [widget] = note.widgets ?? [];
  if (graph !== app.graph || !widget || widget.value !== english) return;
  widget.value = found.note;
  note.title = found.title;
  for (const node of graph._nodes) node.title = texts.titles[node.title] ?? node.title;
  graph.setDirtyCanvas(true, true);
}
