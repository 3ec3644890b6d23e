// Errors and summaries of the server in the user's language, for words.mjs. A message is composed of templates;
// web/messages/ has each of them, with {} in place of a value. What has no template stays as it is.

const SENTENCE = /(?<=[.?])\s+(?=["'\p{Lu}\d-])/u;
const NAMED = /^([\w.-]+): (.+)$/s; // the node, the input or the file of an error
const QUOTED = /^(["'`]).*\1$/s; // a value that the user wrote
const VALUE = String.raw`((?:\S+, )*\S+(?: and \S+)?)`;
const CLAUSE = "; ";
const BETWEEN = [
  [CLAUSE, "；"],
  [": ", "："],
  [", ", "，"],
];

const compiled = new WeakMap(); // texts -> templates

/** A message with each template in it replaced. Args: texts, of web/messages/. */
export function localMessage(text, texts) {
  if (!compiled.has(texts)) compiled.set(texts, compile(texts));
  return translate(text, compiled.get(texts));
}

/** The templates, the longest first. Args: messages and words: in words, a value is a word, a number or a list of them. */
export function compile({ messages, words: short }) {
  const all = [...templatesOf(messages, "(.*?)"), ...templatesOf(short, VALUE)];
  return all.sort((one, other) => other.literal - one.literal || one.values - other.values);
}

function templatesOf(texts, value) {
  const escape = (part) => part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  return Object.entries(texts).map(([english, local]) => {
    const parts = english.split("{}");
    const pattern = new RegExp(`^${parts.map(escape).join(value)}$`, "isu"); // a sentence may begin with a part
    const sample = parts.join("0");
    const open = !parts[0] && !parts[1]?.startsWith(": ");
    const [sentences, clauses] = [SENTENCE.test(sample), sample.includes(CLAUSE)];
    return { pattern, local, literal: parts.join("").length, values: parts.length, open, sentences, clauses };
  });
}

/** A text with each template in it replaced by the local one. */
export function translate(text, known) {
  if (!/[a-z]/i.test(text) || QUOTED.test(text)) return text;
  const inner = (part) => translate(part, known);
  const lines = text.split("\n");
  if (lines.length > 1) return lines.map(inner).join("\n");
  const sentences = text.split(SENTENCE);
  const clauses = text.split(CLAUSE);
  const [, name, rest] = NAMED.exec(text) ?? [];
  for (const { pattern, local, ...template } of known) {
    // A value is within one sentence and one clause of it.
    if ((sentences.length > 1 && !template.sentences) || (clauses.length > 1 && !template.clauses)) continue;
    if (name && template.open) continue; // nor is the name before a message a part of a value
    const values = pattern.exec(text)?.slice(1);
    if (values) return fill(local, values.map(inner));
  }
  if (name) return `${inner(name)}：${inner(rest)}`;
  if (sentences.length > 1) return sentences.map((each) => ended(inner(each))).join("").trim();
  if (text.endsWith(".")) {
    const now = inner(text.slice(0, -1));
    return now === text.slice(0, -1) ? text : `${now}。`;
  }
  const bracketed = /^(.*\S) ?\((.*)\)$/s.exec(text);
  if (bracketed) {
    const [before, inside] = bracketed.slice(1).map(inner);
    if (before !== bracketed[1] || inside !== bracketed[2]) return `${before}（${inside}）`;
  }
  for (const [sign, local] of BETWEEN) {
    const parts = text.split(sign);
    const now = parts.length > 1 ? parts.map(inner) : parts;
    if (parts.some((part, index) => part !== now[index])) return now.join(local);
  }
  return text;
}

function fill(local, values) {
  let next = 0;
  return local.replace(/\{(\d*)\}/g, (_, number) => values[number || next++] ?? "");
}

/** A sentence in a row of several, with a full stop; an English one keeps its own. */
function ended(sentence) {
  const [, before] = /^(.*)\.$/s.exec(sentence) ?? [];
  if (before === undefined) return sentence;
  return /\p{L} \p{L}/u.test(before) ? `${sentence} ` : `${before}。`;
}
