// The line below a strip's cells when nothing is pointed at: numbers and kinds of blocks, or that their number is a guess.

import { make } from "../page/frontend.mjs";
import { words } from "../words.mjs";

const STEPS = [1, 2, 4, 5, 8, 10];
const MAX_MARKS = 8;

/**
 * The contents of the line: numbers under some cells of a single row, else words. Args: blocks, a Blocks; known, whether
 * they are the model's; rows, how many rows show them.
 */
export function footOf(blocks, known, rows) {
  if (!known) return [words().guess(blocks.total)];
  const { sections, refiners } = blocks;
  const oneRow = rows === 1 && sections.length === 1 && !refiners.length;
  return oneRow ? ruler(sections[0]) : [kinds(blocks)];
}

/** "double 0–18, single 19–56"; "main 0–29 · noise and context refiners not counted". */
function kinds({ sections, refiners }) {
  const text = words();
  let next = 0;
  const spans = sections.map(({ name, count }) => ({ kind: name, first: next, last: (next += count) - 1 }));
  const uncounted = refiners.length ? [text.refiners(refiners.map(({ name }) => name))] : [];
  return [text.kinds(spans), ...uncounted].join(" · ");
}

/** "joint 0" at the left, numbers in between, and the last block's. */
function ruler({ name, count }) {
  const step = STEPS.find((each) => count / each <= MAX_MARKS) ?? STEPS.at(-1);
  const last = count - 1;
  const marked = (block) => block > 0 && (block === last || (block % step === 0 && last - block >= step / 2));
  const marks = Array.from({ length: count }, (_, block) => block).filter(marked);
  return [
    make("span", "first", words().kindAt(name, 0)),
    ...marks.map((block) => {
      const mark = make("span", "", String(block));
      mark.style.left = `${((block + 0.5) / count) * 100}%`;
      return mark;
    }),
  ];
}
