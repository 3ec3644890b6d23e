// Extends a prompt (in ComfyUI's sense: a graph in API form) so that it makes each image twice: as it is, and without some
// nodes. Nodes that do not depend on these are shared, and earlier results come from ComfyUI's cache. The user's graph
// does not change.

const PREFIX = "without"; // of the ids of copied nodes
const PREVIEW = "PreviewImage";

/**
 * Args: prompt, in API form: id -> { class_type, inputs }; skipped, ids of nodes to leave out, whose input `model` replaces
 * their output; images, [id, slot] of IMAGE outputs.
 * Returns: { prompt, with all original nodes, so that their results stay cached; pairs, for each image that depends on a
 * skipped node the ids of its two previews }.
 */
export function twice(prompt, skipped, images) {
  const changed = downstream(prompt, skipped);
  const made = { ...prompt };
  const name = (id) => `${PREFIX}-${String(id).replaceAll(":", "-")}`;
  const rewired = (value) => {
    if (!isLink(value)) return value;
    let [id, slot] = value;
    // Several skipped nodes in a row; a prompt has no cycles.
    while (skipped.has(id) && isLink(prompt[id].inputs.model)) [id, slot] = prompt[id].inputs.model;
    return [changed.has(id) ? name(id) : id, slot];
  };
  const copy = (id) => {
    if (made[name(id)]) return;
    const inputs = Object.entries(prompt[id].inputs).map(([input, value]) => [input, rewired(value)]);
    made[name(id)] = { ...prompt[id], inputs: Object.fromEntries(inputs) };
    for (const source of sources(prompt[id])) if (changed.has(source) && !skipped.has(source)) copy(source);
  };
  const pairs = images
    .filter(([id]) => changed.has(id))
    .map(([id, slot], number) => {
      copy(id);
      const [a, b] = [`with-${number}`, `${PREFIX}-preview-${number}`];
      made[a] = { class_type: PREVIEW, inputs: { images: [id, slot] } };
      made[b] = { class_type: PREVIEW, inputs: { images: [name(id), slot] } };
      return [a, b];
    });
  return { prompt: made, pairs };
}

/** The given ids and the ids of all nodes that depend on them. */
function downstream(prompt, ids) {
  const found = new Set(ids);
  for (let before = -1; before !== found.size; ) {
    before = found.size;
    for (const [id, node] of Object.entries(prompt)) if (sources(node).some((source) => found.has(source))) found.add(id);
  }
  return found;
}

function sources(node) {
  return Object.values(node.inputs).filter(isLink).map(([id]) => id);
}

function isLink(value) {
  return Array.isArray(value) && value.length === 2 && typeof value[0] === "string" && Number.isInteger(value[1]);
}
