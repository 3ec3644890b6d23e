// Lists of blocks as text: "0-5, 9", "3:1.5, 7-9:2", "first 25%", "!3".
//
// The same grammar and error texts as mmdit_core/control/grammar.py; a browser test compares the two.

const OPENING = "Write numbers and ranges (0-5, 9, 12-), all, even, odd, first, last, early, middle, late, first 25%, ";
const GRAMMAR = OPENING + "!3 for all but 3, d3 and s7 for FLUX's double and single blocks";

// Python's white space without line ends, which differs from JavaScript's \s.
const SPACE = /[\t\v-\r\x1c-\x1f\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]/g;
const DASH = /[\u2010-\u2015\u2212\u301c\u30fc\uff5e~]/g;
const SPAN = /^([ds]?)(\d+)(?: *(-) *(?:([ds]?)(\d+))?)?$/;
const PERCENT = /^(first|last|middle) *(\d+(?:\.\d+)?) *%$/;
const BEFORE_EXCEPTION = /(?<=\d) +(?=!)/g;
const BETWEEN_NUMBERS = /(?<=\d) +(?=[ds]?\d)/gi;
const DIGITS = "\\d(?:_?\\d)*";
const MOST_DIGITS = 18; // of a block's number
const FLOAT = new RegExp(`^[+-]?(?:${DIGITS}(?:\\.(?:${DIGITS})?)?|\\.${DIGITS})(?:e[+-]?${DIGITS})?$`);

/**
 * The number of a model's blocks: double (joint) blocks first, then single ones, numbered consecutively. sections, the
 * kinds of blocks as its family names them, [{ name, count }] in order; refiners, those that run before and have no number.
 */
export class Blocks {
  constructor(double, single = 0, sections = sectionsOf(double, single), refiners = []) {
    Object.assign(this, { double, single, total: double + single, sections, refiners });
  }

  /** The kind of a block, { name, own, index }: own, its number in its section; index, the section's. */
  kindOf(block) {
    let own = block;
    let index = 0;
    while (own >= this.sections[index].count) own -= this.sections[index++].count;
    return { name: this.sections[index].name, own, index };
  }

  describe() {
    const { double, single, total } = this;
    if (!single) return `This model has blocks 0 to ${total - 1}`;
    return (
      `This model has blocks 0 to ${total - 1}: double d0 to d${double - 1} (0 to ${double - 1}) ` +
      `and single s0 to s${single - 1} (${double} to ${total - 1})`
    );
  }
}

/** The sections of a model of which only the two numbers are known. */
function sectionsOf(double, single) {
  if (!single) return [{ name: "blocks", count: double }];
  return [
    { name: "double", count: double },
    { name: "single", count: single },
  ];
}

// Each returns [first, end) or [first, end, step).
const WORDS = new Map(
  Object.entries({
    all: (b) => [0, b.total],
    none: () => [0, 0],
    even: (b) => [0, b.total, 2],
    odd: (b) => [1, b.total, 2],
    first: (b) => [0, Math.min(1, b.total)],
    last: (b) => [b.total - 1, b.total],
    early: (b) => [0, roundHalfEven(b.total / 3)],
    middle: (b) => [roundHalfEven(b.total / 3), roundHalfEven((2 * b.total) / 3)],
    late: (b) => [roundHalfEven((2 * b.total) / 3), b.total],
    double: (b) => [0, b.double],
    single: (b) => [b.double, b.total],
  }),
);
const FRACTIONS = {
  first: (b, n) => [0, n],
  last: (b, n) => [b.total - n, b.total],
  middle: (b, n) => [Math.floor((b.total - n) / 2), Math.floor((b.total - n) / 2) + n],
};

/** A text in the signs of the grammar, with a comma for each space between two numbers: "4、5 0–3" is "4,5, 0-3". */
export function plain(text) {
  const signs = text
    .replaceAll("\u2014\u2014", "-")
    .replace(DASH, "-")
    .replaceAll("\u3001", ",")
    .replace(/[\uff01-\uff5d]/g, (sign) => String.fromCharCode(sign.charCodeAt(0) - 0xfee0))
    .replace(SPACE, " ");
  const between = (part) => (part.includes("!") ? part : part.replace(BETWEEN_NUMBERS, ", "));
  return ascii(signs).replace(BEFORE_EXCEPTION, ", ").replace(/[^,;\n]+/g, between);
}

/**
 * Parse a text. Returns: `chosen`, Map of block -> own strength or null, sorted by block; `errors`,
 * [{ part, message, kind, kept }] for the invalid parts. The kind "beyond" means that only this model lacks the block; of
 * such a range the blocks that exist are in `chosen`, and `kept` is the text of the others. Other invalid parts are kept
 * whole.
 */
export function read(text, blocks, { strengths = false } = {}) {
  const parts = plain(text).split(/[,;\n]/).map((part) => strip(part).toLowerCase()).filter(Boolean);
  const chosen = new Map();
  const errors = [];
  const onlyExceptions = parts.length && parts.every((part) => part.startsWith("!"));
  if (onlyExceptions) each(WORDS.get("all")(blocks), (block) => chosen.set(block, null));
  for (const part of parts) {
    const except = part.startsWith("!");
    const colon = except ? -1 : part.indexOf(":");
    const body = strip(colon < 0 ? part.slice(except ? 1 : 0) : part.slice(0, colon));
    let strength = null;
    const apply = (range) => each(range, (block) => (except ? chosen.delete(block) : chosen.set(block, strength)));
    try {
      if (colon >= 0) strength = strengthOf(part.slice(colon + 1), part, strengths);
      apply(blocksOf(body, part, blocks));
    } catch (error) {
      if (!(error instanceof InvalidPart)) throw error;
      const { message, kind, exists, rest } = error;
      if (exists) apply(exists);
      const kept = exists ? `${except ? "!" : ""}${rest}${colon < 0 ? "" : part.slice(colon)}` : part;
      errors.push({ part, message, kind, kept });
    }
  }
  return { chosen: sorted(chosen), errors };
}

/** The text of a Map of block -> own strength or null; `all` if it holds every block of the model. */
export function write(chosen, blocks) {
  const entries = [...sorted(chosen)];
  if (blocks && entries.length === blocks.total && entries.every(([, own]) => own === null)) return "all";
  const runs = [];
  for (const [block, own] of entries) {
    const run = runs.at(-1);
    if (run && run.last === block - 1 && run.own === own) run.last = block;
    else runs.push({ first: block, last: block, own });
  }
  return runs
    .map(({ first, last, own }) => (first === last ? `${first}` : `${first}-${last}`) + suffix(own))
    .join(", ");
}

/** exists, the blocks of a range that the model has, [first, end); rest, the text of its other blocks. */
class InvalidPart extends Error {
  constructor(kind, message, exists = null, rest = "") {
    super(message);
    Object.assign(this, { kind, exists, rest });
  }
}

function suffix(own) {
  return own === null ? "" : `:${own}`;
}

function sorted(chosen) {
  return new Map([...chosen].sort(([a], [b]) => a - b));
}

function each([first, end, step = 1], visit) {
  for (let block = first; block < end; block += step) visit(block);
}

function strip(text) {
  return text.replace(/^ +| +$/g, "");
}

/** Python's round(). */
function roundHalfEven(value) {
  const floor = Math.floor(value);
  if (value - floor !== 0.5) return Math.round(value);
  return floor % 2 ? floor + 1 : floor;
}

function strengthOf(text, part, allowed) {
  if (!allowed) throw new InvalidPart("noStrength", `${quoted(part)} has a strength. Write the block alone`);
  const number = strip(text);
  const strength = FLOAT.test(number) ? Number(number.replaceAll("_", "")) : NaN;
  if (!(strength >= 0 && strength < Infinity))
    throw new InvalidPart(
      "strength",
      `${quoted(part)} has no strength of at least 0. Write a number after the colon, as in 3:1.5`,
    );
  return strength;
}

/** The blocks of one part, given without ! and strength. */
function blocksOf(body, part, blocks) {
  if (WORDS.has(body)) return WORDS.get(body)(blocks);
  const fraction = PERCENT.exec(body);
  if (fraction) {
    const percent = Number(fraction[2]);
    if (percent > 100) throw new InvalidPart("percent", `${quoted(part)} is more than all blocks. Write at most 100%`);
    return FRACTIONS[fraction[1]](blocks, roundHalfEven((blocks.total * percent) / 100));
  }
  const span = SPAN.exec(body);
  if (!span)
    throw new InvalidPart("grammar", `${quoted(part)} cannot be read as blocks. ${blocks.describe()}. ${GRAMMAR}`);
  const [, kind, start, dash, endKind, end] = span;
  const first = numberOf(kind, start, part, blocks);
  if (!dash) return [first, first + 1];
  if (end === undefined) return [first, kind === "d" ? blocks.double : blocks.total];
  const last = numberOf(endKind || kind, end, part, blocks, first);
  if (last < first) throw new InvalidPart("backwards", `${quoted(part)} runs backwards. Write the smaller block first`);
  return [first, last + 1];
}

/** A block's number in the whole model. Args: first, of the range that it ends. */
function numberOf(kind, digits, part, blocks, first = Infinity) {
  const before = kind === "s" ? blocks.double : 0;
  const most = { d: blocks.double, s: blocks.single, "": blocks.total }[kind];
  if (digits.length > MOST_DIGITS) {
    throw new InvalidPart("grammar", `${digits.slice(0, MOST_DIGITS)}... is no block. ${blocks.describe()}`);
  }
  const value = BigInt(digits);
  if (value >= most) {
    const where = part === kind + digits ? "" : ` (in ${quoted(part)})`;
    const message = `block ${kind}${value} does not exist${where}. ${blocks.describe()}`;
    if (first >= before + most) throw new InvalidPart("beyond", message);
    const rest = value === BigInt(most) ? `${kind}${most}` : `${kind}${most}-${value}`;
    throw new InvalidPart("beyond", message, [first, before + most], rest);
  }
  return Number(value) + before;
}

/** Decimal digits of any script as ASCII, as Python's int and float accept them; Unicode has them in runs of ten. */
function ascii(text) {
  return text.replace(/\p{Nd}/gu, (digit) => {
    let start = digit.codePointAt(0);
    if (start < 128) return digit;
    while (/\p{Nd}/u.test(String.fromCodePoint(start - 1))) start -= 1;
    return String((digit.codePointAt(0) - start) % 10);
  });
}

/** Python's repr() of a text. */
function quoted(text) {
  const mark = text.includes("'") && !text.includes('"') ? '"' : "'";
  const inner = text.replaceAll("\\", "\\\\").replace(/(?! )[\p{C}\p{Z}]/gu, escaped);
  return mark + (mark === "'" ? inner.replaceAll("'", "\\'") : inner) + mark;
}

function escaped(sign) {
  const code = sign.codePointAt(0);
  const [letter, digits] = code < 256 ? ["x", 2] : code < 65536 ? ["u", 4] : ["U", 8];
  return `\\${letter}${code.toString(16).padStart(digits, "0")}`;
}
