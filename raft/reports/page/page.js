"use strict";
// Unpacks the data and puts the sections on the page.

async function unpack(text) {
  const binary = atob(text.trim());
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return JSON.parse(await new Response(stream).text());
}

// Columns -> rows; prompts get their numbers.
function unfold(data) {
  data.prompts.forEach((prompt, i) => { prompt.number = i; });
  data.runs.forEach((run, i) => {
    for (const kind of ["samples", "held_out"]) {
      const { columns, tallies } = data.texts[i][kind];
      const names = Object.keys(columns);
      run[kind] = columns.iteration.map((_, row) => Object.fromEntries(names.map((name) => [name, columns[name][row]])));
      run[`${kind}_tallies`] = tallies;
    }
  });
  return data;
}

function section(id, title, ...parts) {
  return el("section", { id, "aria-labelledby": `${id}-title` }, el("h2", { id: `${id}-title` }, title), parts);
}

// ---------------------------------------------------------------- curves

const COLOURS = { all: "var(--all)", selected: "var(--selected)", held_out: "var(--held-out)", within: "var(--held-out)", between: "var(--selected)", "": "var(--plain)" };
const DASHES = { selected: "7 3", between: "7 3" };
const RUN_DASHES = [null, "7 3", "2 3", "9 3 2 3"];

function curvesSection(data) {
  const drawn = data.charts.flatMap((chart) => chartsOf(data, chart));
  if (!drawn.length) return null;
  const [first, rest] = [drawn.filter((one) => one.first), drawn.filter((one) => !one.first)];
  const groups = Map.groupBy ? Map.groupBy(rest, (one) => one.section) : new Map([["More", rest]]);
  const more = rest.length ? el("details", { class: "more-charts" }, el("summary", {}, `All other metrics (${rest.length})`),
    [...groups].map(([name, some]) => [el("h3", {}, visible(name)), grid(some)])) : null;
  return section("curves", "Curves", grid(first), more);
}

function grid(charts) {
  return el("div", { class: "grid" }, charts.map(({ spec }) => lineChart(spec)));
}

// One run: the curves of a chart together, coloured by what they are about. Several runs: a chart for every curve,
// one line a run. Bars: a chart for every run.
function chartsOf(data, chart) {
  const { axis, kind } = chart;
  const runs = data.runs.map((run, i) => ({ run, i })).filter(({ run }) => chart.curves.some(({ key }) => run[axis].values[key]));
  const wrap = (title, lines) => (lines.length ? [{ first: chart.first, section: chart.section, spec: { title, axis, kind, lines } }] : []);
  if (kind === "bars") {
    return runs.flatMap(({ run }) => wrap(data.runs.length > 1 ? `${chart.title}: ${run.name}` : chart.title,
      chart.curves.map((curve, i) => lineOf(run, axis, curve.key, { label: curve.label, colour: `var(--phase-${i % 7})` })).filter(Boolean)));
  }
  if (data.runs.length === 1) {
    return wrap(chart.title, chart.curves.map((curve) => lineOf(data.runs[0], axis, curve.key,
      { label: chart.curves.length > 1 ? curve.label : "", across: curve.across, colour: COLOURS[curve.part], dash: DASHES[curve.part] })).filter(Boolean));
  }
  return chart.curves.flatMap((curve) => wrap(curve.label && chart.curves.length > 1 ? `${chart.title}, ${curve.label}` : chart.title,
    runs.map(({ run, i }) => lineOf(run, axis, curve.key, { label: run.name, across: curve.across, colour: `var(--run-${i % 6})`, dash: RUN_DASHES[i % 4] })).filter(Boolean)));
}

// A metric of a run as a line, with its interval where one was recorded; null without a number.
function lineOf(run, axis, key, look) {
  const { places, values } = run[axis];
  const column = values[key];
  if (!column || !column.some(isNumber)) return null;
  const intervals = values[`${key.replace(/_mean$/, "")}_ci95`];
  const pointsOf = (some) => places.map((place, i) => [place, some[i]]).filter(([, value]) => value !== null && value !== undefined);
  if (look.across) { // a path: up and across at the same places
    const across = values[look.across] || [];
    const both = places.map((place, i) => [place, column[i], across[i]]).filter(([, y, x]) => isNumber(x) && isNumber(y));
    return both.length ? { ...look, points: both.map(([place, y]) => [place, y]), across: new Map(both.map(([place, , x]) => [place, x])) } : null;
  }
  const band = intervals ? pointsOf(intervals).filter(([, pair]) => Array.isArray(pair)).map(([place, [low, high]]) => [place, low, high]) : undefined;
  return { ...look, points: pointsOf(column), band };
}

// ---------------------------------------------------------------- the page

function show(data) {
  const find = (text) => Browser.current?.find(text);
  const sections = [summarySection(data), alarmSection(data, data.runs.some((run) => run.samples.length) ? find : null), curvesSection(data),
    beforeAfterSection(data), samplesSection(data), numbersSection(data)].filter(Boolean);
  document.getElementById("title").replaceChildren(...data.runs.flatMap((run, i) => [i ? " · " : "", ...visible(run.name)]));
  document.getElementById("subtitle").textContent = subtitle(data);
  document.getElementById("contents").replaceChildren(...sections.map((one) => el("a", { href: `#${one.id}` }, one.querySelector("h2").textContent)));
  document.getElementById("main").replaceChildren(...sections);
  document.getElementById("footer").textContent = `Made ${data.made} by raft ${data.version} from the records of the run. This page loads nothing and sends nothing.`;
  document.documentElement.dataset.ready = "true";
}

function subtitle({ runs }) {
  const commands = [...new Set(runs.map((run) => run.command).filter(Boolean))].map((command) => `raft ${command}`).join(", ");
  const open = runs.filter((run) => !run.finished).length;
  const state = open ? (runs.length > 1 ? `${open} of ${runs.length} runs not finished` : "not finished") : "";
  return [runs.length > 1 ? `${runs.length} runs` : "", commands, state].filter(Boolean).join(" · ");
}

(async () => {
  const status = document.getElementById("status");
  try {
    if (typeof DecompressionStream === "undefined") throw new Error("this browser is too old to unpack it (any of 2023 or later can)");
    show(unfold(await unpack(document.getElementById("data").textContent)));
  } catch (error) {
    status.textContent = `The page could not be shown: ${error.message}`;
    throw error;
  }
})();
