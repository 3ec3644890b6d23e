// Strength <-> height of a cell's bar. Strengths up to 2, the common ones, take most of the height.

const KNEE = 2;
const KNEE_HEIGHT = 0.8;

const MAX_STRENGTH = 10;
export const STEP = 0.1; // per key press or wheel notch
const SNAP = 0.05; // grid of a drag

/** Strength in [0, 10] -> fraction of the height in [0, 1]. */
export function height(strength) {
  if (strength <= KNEE) return (strength / KNEE) * KNEE_HEIGHT;
  return Math.min(1, KNEE_HEIGHT + ((strength - KNEE) / (MAX_STRENGTH - KNEE)) * (1 - KNEE_HEIGHT));
}

/** Fraction of the height -> strength, on the grid of a drag. */
export function strengthAt(fraction) {
  const exact =
    fraction <= KNEE_HEIGHT
      ? (fraction / KNEE_HEIGHT) * KNEE
      : KNEE + ((fraction - KNEE_HEIGHT) / (1 - KNEE_HEIGHT)) * (MAX_STRENGTH - KNEE);
  return clamped(Math.round(exact / SNAP) * SNAP);
}

/** A strength within its limits, rounded to two decimals. */
export function clamped(strength) {
  return Number(Math.min(MAX_STRENGTH, Math.max(0, strength)).toFixed(2));
}
