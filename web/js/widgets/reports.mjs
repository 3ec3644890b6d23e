// The reports of BlockAnalysis: stored as a property of its node, in the workflow, and shown by the strips.

import { read } from "./grammar.mjs";
import { api, app, nodeOfExecution, openWorkflow, runningWorkflow } from "../page/frontend.mjs";

const MAX_TEXT = 500; // characters of a block list
const PROPERTY = "mmdit_report"; // of the node
// A strip's action -> the operations whose effect it shows, the most similar first.
const SIMILAR = {
  skip: ["skip"],
  boost: ["boost", "disable"],
  disable: ["disable"],
  prompt: ["disable", "boost"],
  analyse: ["skip", "disable", "boost"],
};

let waiting = []; // reports of a workflow that is not open, { workflow, report }

/** Store the report of a finished analysis with its node; that of another workflow once it is open again. */
export function listenForReports(changed) {
  api.addEventListener("mmdit.report", ({ detail }) => {
    waiting.push({ workflow: runningWorkflow() ?? openWorkflow(), report: detail });
    store(changed);
  });
  api.addEventListener("graphChanged", () => store(changed));
}

function store(changed) {
  const [now, later] = [[], []];
  for (const each of waiting) (each.workflow === openWorkflow() ? now : later).push(each);
  waiting = later;
  for (const { report } of now) {
    const { node: id, ...kept } = report;
    const node = nodeOfExecution(id);
    if (!node) continue;
    node.properties[PROPERTY] = kept;
    changed();
  }
}

/**
 * Each block's measured effect, or null; among reports with the same number of blocks, that of this file first. A report is
 * a workflow's data and can be malformed.
 */
export function effectsFor(action, blocks, file) {
  const matching = reportsOf(blocks);
  const report = matching.find((each) => isOf(each, file)) ?? matching[0];
  const measured = (SIMILAR[action] ?? []).map((operation) => report?.effects?.[operation]);
  return measured.find((each) => Array.isArray(each) && each.length === blocks.total) ?? null;
}

/** The blocks that a report of this file suggests for a strip's action, as text; or undefined. */
export function suggestionFor({ action, blocks, levels }, file) {
  const own = action === "analyse" ? "skip" : action;
  return suggestedIn(reportsOf(blocks).filter((each) => isOf(each, file)), own, blocks, levels);
}

function suggestedIn(reports, action, blocks, levels) {
  return reports
    .map(({ suggested }) => suggested?.[action])
    .find((text) => {
      if (typeof text !== "string" || text.length > MAX_TEXT) return false;
      const { chosen, errors } = read(text, blocks, { strengths: levels });
      return chosen.size > 0 && !errors.length;
    });
}

/** The list that a BlockAnalysis gave for a strip's action in its last run, as text; undefined if it is none. */
export function lastListOf(source, { action, blocks, levels }) {
  const report = source?.comfyClass === "BlockAnalysis" ? source.properties?.[PROPERTY] : null;
  return report ? suggestedIn([report], action, blocks, levels) : undefined;
}

function reportsOf({ total }) {
  const reports = [...everyNode()].map((node) => node.properties?.[PROPERTY]);
  return reports.filter((report) => report?.double + report?.single === total);
}

function isOf({ model }, file) {
  const name = file?.split(/[\\/]/).at(-1);
  return Boolean(name) && typeof model === "string" && `${model} `.startsWith(`${name} `);
}

function* everyNode() {
  const root = app.rootGraph ?? app.graph;
  yield* root?._nodes ?? [];
  for (const graph of root?.subgraphs?.values() ?? []) yield* graph._nodes ?? [];
}
