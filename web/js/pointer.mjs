// The strip under a pointer: click toggles, drag paints, shift-click takes a range; where blocks have strengths, the
// wheel and a drag up or down set one.

import { height, STEP, strengthAt } from "./level.mjs";

const SLACK = 4; // pixels on screen before a click is a drag
const WHEEL_REST = 400; // ms without a notch, then the turn of the wheel is over

export function listenToPointer(strip) {
  const { list } = strip;
  let gesture = null;

  list.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || !strip.editable) return;
    const hit = hitAt(strip, event);
    if (!hit) return;
    // No preventDefault: it would keep the focus away, and the mouseup that the host's undo waits for.
    list.setPointerCapture(event.pointerId);
    const { block, row } = hit;
    const extend = event.shiftKey && strip.anchor !== null;
    const on = extend ? strip.chosen.has(strip.anchor) : !strip.chosen.has(block);
    gesture = { block, row, on, x: event.clientX, y: event.clientY, before: strip.text, kind: null, at: block };
    strip.cursor = block;
    if (extend) {
      gesture.kind = "range";
      strip.paint(strip.anchor, block, on, false);
    } else {
      strip.anchor = block;
      // A strength may be meant: then the click waits to see where the pointer goes.
      if (!strip.levels) strip.paint(block, block, on, false);
    }
  });

  list.addEventListener("pointermove", (event) => {
    if (!gesture) {
      strip.hover(hitAt(strip, event)?.block ?? null);
      return;
    }
    const across = event.clientX - gesture.x;
    const up = gesture.y - event.clientY;
    gesture.kind ??= kindOf(strip, across, up);
    if (gesture.kind === "level") {
      const from = (gesture.from ??= height(strip.strengthOf(gesture.block)));
      const share = from + up / gesture.row.row.getBoundingClientRect().height;
      strip.setStrength(gesture.block, strengthAt(Math.min(1, Math.max(0, share))), false);
      strip.hover(gesture.block);
    } else if (gesture.kind === "paint") {
      const block = inRow(gesture.row, event.clientX);
      strip.paint(gesture.at, block, gesture.on, false);
      gesture.at = strip.cursor = block;
      strip.hover(block);
    }
  });

  list.addEventListener("pointerup", () => {
    if (!gesture) return;
    const clicked = gesture.kind === null && strip.levels;
    if (clicked) strip.paint(gesture.block, gesture.block, gesture.on, true);
    else strip.changed(strip.text, true);
    gesture = null;
    strip.draw();
  });

  /** Back to what was there before the drag. */
  strip.cancel = () => {
    if (!gesture) return false;
    const { before } = gesture;
    gesture = null;
    strip.write(before);
    return true;
  };
  list.addEventListener("pointercancel", () => strip.cancel());
  list.addEventListener("pointerleave", () => gesture || strip.hover(null));

  list.addEventListener("contextmenu", (event) => {
    event.preventDefault();
    event.stopPropagation();
    // From the keyboard it comes without a place.
    const box = strip.cells[strip.cursor].getBoundingClientRect();
    const placed = event.clientX > 0 || event.clientY > 0;
    strip.menu(placed ? event.clientX : box.left, placed ? event.clientY : box.bottom);
  });

  let rest = 0;
  list.addEventListener(
    "wheel",
    (event) => {
      const block = hitAt(strip, event)?.block;
      // Without the focus the wheel is the canvas's: who zooms across a node must not change it.
      const ours = strip.levels && strip.editable && list.contains(document.activeElement);
      if (!ours || block === undefined || event.ctrlKey || event.metaKey || !event.deltaY) return;
      event.preventDefault();
      event.stopPropagation();
      strip.setStrength(block, strip.strengthOf(block) - Math.sign(event.deltaY) * STEP, false);
      strip.hover(block);
      clearTimeout(rest);
      rest = setTimeout(() => strip.changed(strip.text, true), WHEEL_REST);
    },
    { passive: false },
  );
}

function kindOf(strip, across, up) {
  if (Math.hypot(across, up) < SLACK) return null;
  return strip.levels && Math.abs(up) > Math.abs(across) ? "level" : "paint";
}

/** The block and the row under an event; null outside of the strip. */
function hitAt(strip, { clientX, clientY }) {
  const box = strip.list.getBoundingClientRect();
  const inside = clientX >= box.left && clientX <= box.right && clientY >= box.top && clientY <= box.bottom;
  if (!inside) return null;
  const row = strip.rows.findLast(({ row }) => clientY >= row.getBoundingClientRect().top) ?? strip.rows[0];
  return { block: inRow(row, clientX), row };
}

/** The block of a row at a place on screen, its first or last one beyond its ends. */
function inRow({ row, first, end }, x) {
  const left = row.firstElementChild.getBoundingClientRect().left;
  const { right } = row.lastElementChild.getBoundingClientRect();
  const place = Math.floor(((x - left) / (right - left)) * (end - first));
  return first + Math.max(0, Math.min(end - first - 1, place));
}
