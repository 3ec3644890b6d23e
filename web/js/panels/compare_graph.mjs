// From a prompt to one that makes each picture twice: as it is, and without some of its nodes. The graph in the page is
// not touched. All that does not depend on these nodes is there once, and what was made before comes from the cache.

const TITLE = "without"; // in the names of the nodes that are there twice
const PREVIEW = "PreviewImage";

/**
 * Args: prompt, in API form: id -> { class_type, inputs }; skipped, ids of nodes that hand their input `model` on where
 * they are left out; pictures, [id, slot] of outputs that are IMAGE.
 * Returns: { prompt, with all nodes that were in it, so that their results stay in the cache; pairs, for each picture
 * that depends on a skipped node the ids of its two previews }.
 */
export function twice(prompt, skipped, pictures) {
  const changed = downstream(prompt, skipped);
  const made = { ...prompt };
  const name = (id) => `${TITLE}-${String(id).replaceAll(":", "-")}`;
  const rewired = (value) => {
    if (!isLink(value)) return value;
    let [id, slot] = value;
    // Several that follow each other; a ring would be no prompt.
    while (skipped.has(id) && isLink(prompt[id].inputs.model)) [id, slot] = prompt[id].inputs.model;
    return [changed.has(id) ? name(id) : id, slot];
  };
  const copy = (id) => {
    if (made[name(id)]) return;
    const inputs = Object.entries(prompt[id].inputs).map(([input, value]) => [input, rewired(value)]);
    made[name(id)] = { ...prompt[id], inputs: Object.fromEntries(inputs) };
    for (const source of sources(prompt[id])) if (changed.has(source) && !skipped.has(source)) copy(source);
  };
  const pairs = pictures
    .filter(([id]) => changed.has(id))
    .map(([id, slot], number) => {
      copy(id);
      const [a, b] = [`with-${number}`, `${TITLE}-preview-${number}`];
      made[a] = { class_type: PREVIEW, inputs: { images: [id, slot] } };
      made[b] = { class_type: PREVIEW, inputs: { images: [name(id), slot] } };
      return [a, b];
    });
  return { prompt: made, pairs };
}

/** Ids of the nodes that depend on some nodes, and of these. */
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
