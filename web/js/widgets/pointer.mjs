// Pointer of the strip: click toggles, drag paints, shift-click chooses a range. If blocks have strengths, a vertical drag
// or the wheel over a chosen block sets one; elsewhere the wheel zooms the canvas.

import { height, STEP, strengthAt } from "./bar.mjs";

const DRAG_PIXELS = 4; // on screen; a shorter move is a click
const WHEEL_PAUSE = 400; // ms without an event end a turn of the wheel
const NOTCH = 40; // pixels; a touchpad sends many small events

const strips = new WeakMap(); // list -> strip
// The present turn of the wheel; strip: null if it belongs to the canvas.
let turn = { last: -Infinity, strip: null, distance: 0, timer: 0 };

// Capture: in Nodes 2.0 ComfyUI forwards wheel events over nodes to the canvas before they reach the node.
addEventListener("wheel", onWheel, { capture: true, passive: false });

export function listenToPointer(strip) {
  const { list } = strip;
  let gesture = null;
  strips.set(list, strip);

  list.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || !strip.editable) return;
    const hit = hitAt(strip, event);
    if (!hit) return;
    // No preventDefault: it would prevent the focus, and the mouseup that ComfyUI's undo needs.
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
      // With strengths, the pointer's direction decides between a click and a strength.
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
      const fraction = from + up / gesture.row.row.getBoundingClientRect().height;
      strip.setStrength(gesture.block, strengthAt(Math.min(1, Math.max(0, fraction))), false);
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

  /** Restore the text from before the drag. */
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
    // The menu key sends no position.
    const box = strip.cells[strip.cursor].getBoundingClientRect();
    const hasPosition = event.clientX > 0 || event.clientY > 0;
    strip.menu(hasPosition ? event.clientX : box.left, hasPosition ? event.clientY : box.bottom);
  });
}

/** A turn of the wheel that begins on the canvas never changes a strip. */
function onWheel(event) {
  const strip = strips.get(event.target.closest?.(".mmdit-strip")) ?? null;
  const begins = event.timeStamp - turn.last > WHEEL_PAUSE;
  if (begins || !strip) turn = { ...turn, strip: takesWheel(strip, event) ? strip : null, distance: 0 };
  turn.last = event.timeStamp;
  if (!turn.strip || turn.strip !== strip) return;
  event.preventDefault();
  event.stopImmediatePropagation();
  if (!takesWheel(strip, event)) return;
  const delta = event.deltaMode ? event.deltaY * NOTCH : event.deltaY;
  turn.distance = Math.abs(delta) < NOTCH ? turn.distance + delta : delta;
  if (Math.abs(turn.distance) < NOTCH) return;
  const { block } = hitAt(strip, event);
  strip.setStrength(block, strip.strengthOf(block) - Math.sign(turn.distance) * STEP, false);
  strip.hover(block);
  turn.distance = 0;
  clearTimeout(turn.timer);
  turn.timer = setTimeout(() => strip.changed(strip.text, true), WHEEL_PAUSE);
}

/** True if the wheel sets a strength: over a chosen block, or over any block if the strip has the focus. */
function takesWheel(strip, event) {
  if (!strip?.levels || !strip.editable || event.ctrlKey || event.metaKey) return false;
  if (Math.abs(event.deltaY) <= Math.abs(event.deltaX)) return false;
  const block = hitAt(strip, event)?.block;
  return block !== undefined && (strip.chosen.has(block) || strip.list.contains(document.activeElement));
}

function kindOf(strip, across, up) {
  if (Math.hypot(across, up) < DRAG_PIXELS) return null;
  return strip.levels && Math.abs(up) > Math.abs(across) ? "level" : "paint";
}

/** The block and the row under an event; null outside the strip. */
function hitAt(strip, { clientX, clientY }) {
  const box = strip.list.getBoundingClientRect();
  const inside = clientX >= box.left && clientX <= box.right && clientY >= box.top && clientY <= box.bottom;
  if (!inside) return null;
  const row = strip.rows.findLast(({ row }) => clientY >= row.getBoundingClientRect().top) ?? strip.rows[0];
  return { block: inRow(row, clientX), row };
}

/** The block of a row at x on screen, clamped to the row. */
function inRow({ row, first, end }, x) {
  const left = row.firstElementChild.getBoundingClientRect().left;
  const { right } = row.lastElementChild.getBoundingClientRect();
  const index = Math.floor(((x - left) / (right - left)) * (end - first));
  return first + Math.max(0, Math.min(end - first - 1, index));
}
