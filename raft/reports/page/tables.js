"use strict";
// The parts of the page that are words and numbers: summary, alarms, numbers by iteration, before and after.

// A table in a frame of its own that scrolls sideways, so that the page never does.
function table(caption, head, body, attributes = {}) {
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    el("table", attributes, el("thead", {}, el("tr", {}, head)), el("tbody", {}, body)));
}

function th(text, attributes = {}) {
  return el("th", { scope: "col", ...attributes }, text);
}

// ---------------------------------------------------------------- summary

function summarySection(data) {
  const parts = data.runs.length === 1 ? [tiles(data.runs[0]), factList(data.runs[0])]
    : [runTable(data), comparisonTable(data)];
  return section("summary", "Summary", ...parts, el("div", { class: "files" }, data.runs.map((run) => fileDetails(run, data.runs.length > 1))));
}

function tiles(run) {
  const found = run.results.slice(0, 5).map((result) => tile(result.label,
    result.before === result.after && result.where[0] === result.where[1] ? num(result.after)
      : [num(result.before), el("span", { class: "arrow" }, " → "), num(result.after)],
    result.ci95 ? `${signed(result.difference)}, 95% interval ${interval(result.ci95)}` : whereOf(result)));
  if (run.watched) {
    found.push(tile("Drift alarms", el("span", { class: run.num_alarms ? "alarming" : "" }, String(run.num_alarms)),
      run.num_alarms ? el("a", { href: "#alarms" }, "what was noticed") : "nothing noticed"));
  }
  if (isNumber(run.best_iteration)) found.push(tile("Best iteration", String(run.best_iteration), "by held-out reward"));
  return el("div", { class: "tiles" }, found);
}

function tile(label, value, note) {
  return el("div", { class: "tile" }, el("div", { class: "label" }, label), el("div", { class: "value" }, value),
    el("div", { class: "note" }, note));
}

function whereOf({ where: [first, last], axis }) {
  const noun = axis === "steps" ? "step" : "iteration";
  return first === last ? `${noun} ${last}` : `${noun} ${first} to ${last}`;
}

function factList(run) {
  return el("dl", { class: "facts" }, run.facts.map(([label, text]) =>
    el("div", {}, el("dt", {}, label), el("dd", {}, visible(text)))));
}

// Runs side by side: results first, then every setting; settings that differ stand out.
function runTable({ runs, labels }) {
  const results = labels.results.filter((label) => runs.some((run) => run.results.some((one) => one.label === label)));
  const facts = labels.facts.filter((label) => runs.some((run) => run.facts.some(([name]) => name === label)));
  const rows = [el("tr", {}, el("th", { scope: "row" }, "Command"), runs.map((run) => el("td", {}, run.command ? `raft ${run.command}` : DASH)))];
  for (const label of results) {
    const found = runs.map((run) => run.results.find((one) => one.label === label));
    rows.push(el("tr", {}, el("th", { scope: "row" }, label), found.map((one) => el("td", { class: "number" },
      one ? [num(one.before), el("span", { class: "arrow" }, " → "), num(one.after)] : DASH))));
  }
  if (runs.some((run) => run.watched)) {
    rows.push(el("tr", {}, el("th", { scope: "row" }, "Drift alarms"), runs.map((run) => el("td", { class: "number" }, run.watched ? String(run.num_alarms) : DASH))));
  }
  for (const label of facts) {
    const found = runs.map((run) => (run.facts.find(([name]) => name === label) || [])[1]);
    const same = new Set(found).size === 1;
    rows.push(el("tr", { class: same ? "same" : "" }, el("th", { scope: "row" }, label),
      found.map((text) => el("td", {}, text === undefined ? DASH : visible(text)))));
  }
  return table("Runs side by side", [th(""), runs.map((run, i) => th([runMark(i), visible(run.name)]))], rows, { class: "runs" });
}

function runMark(i) {
  return el("span", { class: "run-mark", css: { "--c": `var(--run-${i % 6})` } });
}

// Held-out rewards on the prompts that all runs have.
function comparisonTable({ runs, comparison }) {
  if (!comparison) return null;
  const base = comparison.rows[0].run;
  const rows = comparison.rows.map((row) => {
    const versus = row.versus[base];
    return el("tr", {}, el("th", { scope: "row", class: "run-name" }, runMark(row.run), visible(runs[row.run].name)),
      el("td", { class: "number" }, num(row.before)), el("td", { class: "number" }, num(row.after)),
      el("td", { class: "number" }, versus ? signed(versus.difference) : DASH),
      el("td", { class: "number" }, versus ? interval(versus.ci95) || DASH : DASH));
  });
  return el("div", {}, el("h3", {}, `Held-out reward on the ${count(comparison.num_prompts, "prompt")} that these runs share`),
    comparison.same_rewards ? null : el("p", { class: "warning" }, "These runs have different rewards, or weigh or normalise them differently: their scores are not on one scale."),
    table("Held-out rewards compared", ["Run", "before", "after", `after, less that of ${runs[base].name}`, "95% interval"].map((text, i) => th(i === 3 ? visible(text) : text, i ? { class: "number" } : {})), rows));
}

function fileDetails(run, named) {
  const files = [["config.yaml", run.config], ["environment.json", run.environment]].filter(([, text]) => text);
  return files.map(([name, text]) => el("details", { class: "file" },
    el("summary", {}, named ? [visible(run.name), "/"] : null, name), el("pre", {}, visible(text))));
}

// ---------------------------------------------------------------- alarms

function alarmSection(data, search) {
  const watched = data.runs.filter((run) => run.watched);
  if (!watched.length) return null;
  const parts = watched.flatMap((run) => [
    data.runs.length > 1 ? el("h3", {}, runMark(data.runs.indexOf(run)), visible(run.name)) : null,
    run.alarms.length ? latestAlarms(run.alarms).map((alarm) => alarmCard(alarm, search))
      : el("p", {}, "Nothing that selection favours has become markedly more frequent in the responses."),
    risenTable(run.risen),
  ]);
  return section("alarms", "Alarms", ...parts);
}

// One card a feature, as it stood when it was last alarmed about; the latest first.
function latestAlarms(alarms) {
  const latest = new Map();
  for (const alarm of alarms) latest.set(`${alarm.kind} ${alarm.feature}`, alarm);
  return [...latest.values()].sort((a, b) => b.iteration - a.iteration);
}

function alarmCard(alarm, search) {
  const { kind, feature, also, rule, examples } = alarm;
  return el("article", { class: "alarm" },
    el("h4", {}, el("span", { class: "kind" }, visible(String(kind ?? ""))), " ", el("code", {}, visible(String(feature ?? "")))),
    el("p", {}, sentence(alarm)),
    Array.isArray(also) && also.length ? el("p", { class: "note" }, "In the same responses: ",
      also.slice(0, 8).map((one) => [el("code", {}, visible(String(Array.isArray(one) ? one[one.length - 1] : one))), " "])) : null,
    rule?.command ? el("p", {}, "To counter it: ", el("code", { class: "command" }, visible(String(rule.command))), ruleEffect(rule)) : null,
    (Array.isArray(examples) ? examples : []).filter((one) => one?.excerpt)
      .map((one) => el("blockquote", { dir: "auto" }, visible(String(one.excerpt).slice(0, 400)))),
    search && TEXTUAL.has(kind) ? button("Find it in the samples", () => search(String(feature)), { class: "link" }) : null);
}

// Kinds of features that are what stands in the text, not a name for it.
const TEXTUAL = new Set(["character", "opening", "ending", "phrase"]);

function sentence({ iteration, share_start: start, share_now: now, ratio, selection_ratio: selection, first_iteration: first }) {
  const parts = [
    isNumber(start) && isNumber(now) ? `In ${percent(now)} of the responses of iteration ${iteration}, ${percent(start)} at the start` : `Iteration ${iteration}`,
    isNumber(ratio) ? `${times(ratio)} as frequent` : null,
    isNumber(selection) ? `${times(selection)} as frequent among the selected as among all` : null,
    isNumber(first) ? `first noticed after iteration ${first}` : null,
  ];
  return `${parts.filter(Boolean).join("; ")}.`;
}

function ruleEffect({ caught, discards_now: now, discards_start: start }) {
  if (![caught, now, start].every(isNumber)) return "";
  return ` catches ${percent(caught)} of these responses. It would have discarded ${percent(now)} of all responses now and ${percent(start)} at the start.`;
}

// What rose without being an alarm, in the last iteration.
function risenTable(risen) {
  if (!risen.length) return null;
  const rows = risen.map((one) => el("tr", {}, el("th", { scope: "row" }, el("code", {}, visible(String(one.feature)))),
    el("td", {}, visible(String(one.kind ?? ""))),
    [one.share_start, one.share_now].map((share) => el("td", { class: "number" }, isNumber(share) ? percent(share) : DASH)),
    [one.ratio, one.selection_ratio, one.p].map((value) => el("td", { class: "number" }, num(value)))));
  const head = ["What", "kind", "at the start", "now", "times as frequent", "selection", "p, corrected"];
  return el("details", {}, el("summary", {}, `What else has risen (${risen.length})`),
    table("What else has risen", head.map((text, i) => th(text, i > 1 ? { class: "number" } : {})), rows));
}

// ---------------------------------------------------------------- numbers by iteration

function numbersSection(data) {
  const runs = data.runs.filter((run) => run.iterations.places.length);
  if (!runs.length) return null;
  const holder = el("div", {});
  const show = (name) => holder.replaceChildren(numbersTable(runs[Number(name)]));
  show(0);
  const choice = runs.length > 1 ? select("Run", runs.map((run, i) => [String(i), run.name]), "0", show) : null;
  return section("numbers", "Numbers by iteration", choice, holder);
}

function numbersTable({ iterations: { places, values } }) {
  const groups = new Map();
  for (const key of Object.keys(values)) {
    const group = key.split("/")[0];
    if (!groups.has(group)) groups.set(group, []);
    groups.get(group).push(key);
  }
  const rows = [...groups].flatMap(([group, keys]) => [
    el("tr", { class: "group" }, el("th", { scope: "rowgroup" }, visible(group)), el("td", { colspan: places.length })),
    ...keys.map((key) => el("tr", {}, el("th", { scope: "row" }, visible(key.slice(group.length + 1))),
      values[key].map((value) => el("td", { class: "number" }, Array.isArray(value) ? value.map(num).join(" to ") : value === null ? "" : num(value))))),
  ]);
  return table("Numbers by iteration", [th("iteration"), places.map((place) => th(String(place), { class: "number" }))], rows, { class: "numbers" });
}

// ---------------------------------------------------------------- before and after

// Every held-out prompt with its first and last response in every run.
function pairsOf(data) {
  const pairs = new Map();
  data.runs.forEach((run, i) => {
    const iterations = [...new Set(run.held_out.map((row) => row.iteration))];
    const [first, last] = [iterations[0], iterations[iterations.length - 1]];
    const seen = {};
    for (const row of run.held_out) {
      if (row.iteration !== first && row.iteration !== last) continue;
      // Equal prompts of one file are told apart by their order.
      const turn = (seen[`${row.iteration} ${row.prompt}`] = (seen[`${row.iteration} ${row.prompt}`] || 0) + 1);
      const key = `${row.prompt} ${turn}`;
      if (!pairs.has(key)) pairs.set(key, { prompt: data.prompts[row.prompt], runs: data.runs.map(() => ({})) });
      const entry = pairs.get(key).runs[i];
      if (row.iteration === first) entry.before = row;
      if (row.iteration === last && last !== first) entry.after = row;
    }
  });
  for (const pair of pairs.values()) {
    for (const entry of pair.runs) {
      const [before, after] = [entry.before?.reward, entry.after?.reward];
      entry.change = isNumber(before) && isNumber(after) ? after - before : null;
    }
  }
  return [...pairs.values()];
}

function beforeAfterSection(data) {
  const pairs = pairsOf(data);
  if (!pairs.length) return null;
  const used = data.runs.map((_, i) => i).filter((i) => pairs.some((pair) => pair.runs[i].before));
  const state = { key: `${used[0]} ${pairs.some((pair) => isNumber(pair.runs[used[0]].change)) ? "change" : "before"}`, down: true, query: "", limit: 20, open: new Set() };
  const body = el("tbody", {});
  const more = button("Show more", () => { state.limit += 50; draw(); }, { class: "more" });
  const status = el("p", { class: "note", role: "status" });
  const heads = [];

  const valueOf = (pair) => {
    if (state.key === "prompt") return oneLine(pair.prompt).toLowerCase();
    const [run, what] = state.key.split(" ");
    const entry = pair.runs[Number(run)];
    return what === "change" ? entry.change : entry[what]?.reward ?? null;
  };
  const draw = () => {
    const search = pattern(state.query);
    const found = pairs.filter((pair) => !search || matches(search, pair.prompt.messages.map(([, text]) => text).join("\n"))
      || pair.runs.some((entry) => [entry.before, entry.after].some((row) => row && matches(search, row.response))));
    found.sort((a, b) => order(valueOf(a), valueOf(b), state.down));
    body.replaceChildren(...found.slice(0, state.limit).flatMap((pair) => pairRows(data, pair, used, state.open, search)));
    status.textContent = `${count(found.length, "held-out prompt")}${search ? " found" : ""}${leftOut(data)}`;
    more.hidden = found.length <= state.limit;
    for (const { key, cell } of heads) cell.setAttribute("aria-sort", key === state.key ? (state.down ? "descending" : "ascending") : "none");
  };
  const head = (key, label, attributes) => {
    const cell = th(button(label, () => {
      state.down = state.key === key ? !state.down : key !== "prompt";
      state.key = key;
      draw();
    }, { class: "sort" }), attributes);
    heads.push({ key, cell });
    return cell;
  };
  const single = used.length === 1;
  const top = single ? null : el("tr", {}, th(""), used.map((i) => th([runMark(i), visible(data.runs[i].name)], { colspan: 3, class: "span" })));
  const names = el("tr", {}, head("prompt", "Prompt"), used.map((i) => ["before", "after", "change"].map((what) => head(`${i} ${what}`, what, { class: "number" }))));
  const query = el("input", { type: "search", placeholder: "Words in prompts or responses", oninput: () => { state.query = query.value; state.limit = 20; draw(); } });
  draw();
  return section("before-after", "Before and after", el("p", { class: "soft lead" }, "Responses to the same held-out prompts, with the same random numbers, before training and after the last evaluation. A row opens to show both."),
    el("div", { class: "controls" }, el("label", { class: "field grow" }, el("span", {}, "Search"), query)), status,
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Before and after" },
      el("table", { class: "pairs" }, el("thead", {}, top, names), body)), more);
}

function leftOut(data) {
  const missing = data.runs.reduce((sum, run) => sum + Math.max(0, ...run.held_out_tallies.map((one) => one.prompts - one.shown_prompts)), 0);
  return missing ? `; ${count(missing, "other")} left out to keep this page small (held_out/*.jsonl has them)` : "";
}

// A prompt's row, and below it the row with the texts while it is open.
function pairRows(data, pair, used, open, search) {
  const toggle = button(visible(oneLine(pair.prompt), search), () => {
    const isOpen = !open.delete(pair);
    if (isOpen) open.add(pair);
    toggle.setAttribute("aria-expanded", String(isOpen));
    row.classList.toggle("open", isOpen);
    if (isOpen) row.after(pairDetail(data, pair, used, search));
    else row.nextSibling.remove();
  }, { class: "row-toggle", "aria-expanded": String(open.has(pair)), dir: "auto" });
  const row = el("tr", { class: open.has(pair) ? "open" : "" }, el("th", { scope: "row", class: "prompt-cell" }, toggle), used.map((i) => {
    const { before, after, change } = pair.runs[i];
    return [before?.reward, after?.reward].map((reward) => el("td", { class: "number" }, num(reward)))
      .concat(el("td", { class: "number strong" }, isNumber(change) ? signed(change) : DASH));
  }));
  return open.has(pair) ? [row, pairDetail(data, pair, used, search)] : [row];
}

function pairDetail(data, pair, used, search) {
  const columns = used.flatMap((i) => ["before", "after"].map((what) => {
    const sample = pair.runs[i][what];
    return sample ? el("div", { class: "response" }, el("div", { class: "response-head" },
      used.length > 1 ? [runMark(i), visible(data.runs[i].name), " · "] : null,
      `${what}, iteration ${sample.iteration} · `, el("b", {}, num(sample.reward))), block(sample.response, search), omission(sample.omitted)) : null;
  }));
  return el("tr", { class: "detail" }, el("td", { colspan: 1 + 3 * used.length },
    el("div", { class: "detail-body" }, promptBlock(pair.prompt, search), el("div", { class: "side-by-side" }, columns))));
}

function matches(search, text) {
  search.lastIndex = 0;
  return search.test(text);
}

// For sort(): what has no value comes last in either direction.
function order(a, b, down) {
  if (a === null || a === undefined || b === null || b === undefined) return (a ?? null) === (b ?? null) ? 0 : (a ?? null) === null ? 1 : -1;
  return (a < b ? -1 : a > b ? 1 : 0) * (down ? -1 : 1);
}
