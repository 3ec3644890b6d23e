// A strength as the height of a bar, and back. The common strengths, up to 2, take most of the height.

const KNEE = 2;
const KNEE_HEIGHT = 0.8;

export const MOST = 10;
export const STEP = 0.1; // of a key or a notch of the wheel
const SNAP = 0.05; // of a drag

/** Strength in [0, 10] -> share of the height in [0, 1]. */
export function height(strength) {
  if (strength <= KNEE) return (strength / KNEE) * KNEE_HEIGHT;
  return Math.min(1, KNEE_HEIGHT + ((strength - KNEE) / (MOST - KNEE)) * (1 - KNEE_HEIGHT));
}

/** Share of the height -> strength, on the grid of a drag. */
export function strengthAt(share) {
  const exact =
    share <= KNEE_HEIGHT
      ? (share / KNEE_HEIGHT) * KNEE
      : KNEE + ((share - KNEE_HEIGHT) / (1 - KNEE_HEIGHT)) * (MOST - KNEE);
  return held(Math.round(exact / SNAP) * SNAP);
}

/** Within its limits, and without the noise of binary fractions. */
export function held(strength) {
  return Number(Math.min(MOST, Math.max(0, strength)).toFixed(2));
}
