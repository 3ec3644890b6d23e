// The strip under a pointer: click toggles, drag paints, shift-click takes a range; where blocks have strengths, a drag
// up or down sets one, and so does the wheel over a chosen block. Elsewhere the wheel zooms, as everywhere on the canvas.

import { height, STEP, strengthAt } from "./bar.mjs";

const SLACK = 4; // pixels on screen before a click is a drag
const WHEEL_REST = 400; // ms without a notch, then the turn of the wheel is over
const NOTCH = 40; // pixels, at least; a touchpad sends many small ones

const strips = new WeakMap(); // list -> strip
let turn = { last: -Infinity, strip: null, way: 0, rest: 0 }; // of the wheel; strip: whose it is, null for the canvas's

// Ahead of the host, which in Nodes 2.0 hands the wheel over nodes to the canvas before they see it.
addEventListener("wheel", onWheel, { capture: true, passive: false });

export function listenToPointer(strip) {
  const { list } = strip;
  let gesture = null;
  strips.set(list, strip);

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
}

/** A turn of the wheel that begins on the canvas stays its own: who zooms across a node must not change it. */
function onWheel(event) {
  const strip = strips.get(event.target.closest?.(".mmdit-strip")) ?? null;
  const begins = event.timeStamp - turn.last > WHEEL_REST;
  if (begins || !strip) turn = { ...turn, strip: takesWheel(strip, event) ? strip : null, way: 0 };
  turn.last = event.timeStamp;
  if (!turn.strip || turn.strip !== strip) return;
  event.preventDefault();
  event.stopImmediatePropagation();
  if (!takesWheel(strip, event)) return;
  const way = event.deltaMode ? event.deltaY * NOTCH : event.deltaY;
  turn.way = Math.abs(way) < NOTCH ? turn.way + way : way;
  if (Math.abs(turn.way) < NOTCH) return;
  const { block } = hitAt(strip, event);
  strip.setStrength(block, strip.strengthOf(block) - Math.sign(turn.way) * STEP, false);
  strip.hover(block);
  turn.way = 0;
  clearTimeout(turn.rest);
  turn.rest = setTimeout(() => strip.changed(strip.text, true), WHEEL_REST);
}

/** Whether a wheel sets a strength: of a chosen block, and of any where the strip has the focus. */
function takesWheel(strip, event) {
  if (!strip?.levels || !strip.editable || event.ctrlKey || event.metaKey) return false;
  if (Math.abs(event.deltaY) <= Math.abs(event.deltaX)) return false;
  const block = hitAt(strip, event)?.block;
  return block !== undefined && (strip.chosen.has(block) || strip.list.contains(document.activeElement));
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
