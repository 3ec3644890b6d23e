// The strip under the keyboard: arrows walk (with shift they take a range), space switches, up and down set a strength.

import { STEP } from "./bar.mjs";

const ACTIONS = {
  ArrowLeft: (strip, event) => walk(strip, strip.cursor - 1, event.shiftKey),
  ArrowRight: (strip, event) => walk(strip, strip.cursor + 1, event.shiftKey),
  ArrowUp: (strip) => climb(strip, 1),
  ArrowDown: (strip) => climb(strip, -1),
  Home: (strip, event) => walk(strip, 0, event.shiftKey),
  End: (strip, event) => walk(strip, strip.blocks.total - 1, event.shiftKey),
  " ": toggle,
  Enter: toggle,
  Delete: clear, // of the page it would delete the whole node
  Backspace: clear,
  Escape: (strip) => strip.cancel() || strip.list.blur(),
};

export function listenToKeys(strip) {
  const { list } = strip;
  list.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(ACTIONS, event.key)) return;
    // Or the page would scroll, pan the canvas or move the node.
    event.preventDefault();
    event.stopPropagation();
    ACTIONS[event.key](strip, event);
  });
  list.addEventListener("blur", () => strip.hover(null));
}

function walk(strip, to, extend) {
  const from = strip.cursor;
  strip.moveTo(to);
  if (!extend || !strip.editable) strip.anchor = null;
  else {
    // A range that grows takes over what its first block is; one that begins on a free block chooses.
    strip.anchor ??= from;
    if (!strip.chosen.has(strip.anchor)) strip.toggle(strip.anchor, false);
    strip.paint(strip.anchor, strip.cursor, true);
  }
}

function climb(strip, direction) {
  if (strip.rows.length > 1 && !strip.levels) {
    const here = strip.rows.findIndex(({ first, end }) => strip.cursor >= first && strip.cursor < end);
    const there = strip.rows[here - direction];
    if (there) strip.moveTo(Math.min(there.end - 1, there.first + strip.cursor - strip.rows[here].first));
  } else if (strip.levels && strip.editable) {
    strip.setStrength(strip.cursor, strip.strengthOf(strip.cursor) + direction * STEP);
    strip.moveTo(strip.cursor);
  }
}

function toggle(strip) {
  if (!strip.editable) return;
  strip.anchor = strip.cursor;
  strip.toggle(strip.cursor);
  strip.moveTo(strip.cursor);
}

function clear(strip) {
  if (strip.editable && strip.chosen.has(strip.cursor)) toggle(strip);
}
