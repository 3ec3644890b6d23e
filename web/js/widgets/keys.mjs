// Keyboard of the strip: arrows move the cursor (with shift: choose a range), space toggles, up and down set a strength.

import { STEP } from "./bar.mjs";

const ACTIONS = {
  ArrowLeft: (strip, event) => moveCursor(strip, strip.cursor - 1, event.shiftKey),
  ArrowRight: (strip, event) => moveCursor(strip, strip.cursor + 1, event.shiftKey),
  ArrowUp: (strip) => moveUpOrDown(strip, 1),
  ArrowDown: (strip) => moveUpOrDown(strip, -1),
  Home: (strip, event) => moveCursor(strip, 0, event.shiftKey),
  End: (strip, event) => moveCursor(strip, strip.blocks.total - 1, event.shiftKey),
  " ": toggle,
  Enter: toggle,
  Delete: clear, // ComfyUI would delete the node
  Backspace: clear,
  Escape: (strip) => strip.cancel() || strip.list.blur(),
};

export function listenToKeys(strip) {
  const { list } = strip;
  list.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(ACTIONS, event.key)) return;
    // Otherwise the page scrolls, the canvas pans or the node moves.
    event.preventDefault();
    event.stopPropagation();
    ACTIONS[event.key](strip, event);
  });
  list.addEventListener("blur", () => strip.hover(null));
}

function moveCursor(strip, to, extend) {
  const from = strip.cursor;
  strip.moveTo(to);
  if (!extend || !strip.editable) strip.anchor = null;
  else {
    // The range takes the state of its first block; a range that starts on a free block chooses it.
    strip.anchor ??= from;
    if (!strip.chosen.has(strip.anchor)) strip.toggle(strip.anchor, false);
    strip.paint(strip.anchor, strip.cursor, true);
  }
}

function moveUpOrDown(strip, direction) {
  if (strip.rows.length > 1 && !strip.levels) {
    const row = strip.rows.findIndex(({ first, end }) => strip.cursor >= first && strip.cursor < end);
    const next = strip.rows[row - direction];
    if (next) strip.moveTo(Math.min(next.end - 1, next.first + strip.cursor - strip.rows[row].first));
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
