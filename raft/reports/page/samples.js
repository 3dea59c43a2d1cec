"use strict";
// The sample browser: by prompt across iterations, or as one list in any order; filtered and searched.

const PAGE = { prompts: 12, samples: 30 };

function samplesSection(data) {
  const sources = data.runs.flatMap((run, i) => [["samples", "samples"], ["held_out", "held-out responses"]]
    .filter(([kind]) => run[kind].length)
    .map(([kind, label]) => ({ id: `${i} ${kind}`, run, kind, label: data.runs.length > 1 ? `${run.name}: ${label}` : label })));
  if (!sources.length) return null;
  const browser = new Browser(data, sources);
  return section("samples", "Samples", browser.note, browser.controls, browser.status, browser.list, browser.more);
}

class Browser {
  constructor(data, sources) {
    this.data = data;
    this.sources = sources;
    this.state = { source: sources[0].id, iteration: "all", show: "all", sort: "prompt", query: "", prompt: null, limit: PAGE.prompts };
    this.note = el("p", { class: "soft lead" });
    this.controls = el("div", { class: "controls" });
    this.status = el("p", { class: "note", role: "status" });
    this.list = el("div", { class: "samples" });
    this.more = button("Show more", () => this.set({ limit: 2 * this.state.limit }), { class: "more" });
    this.timer = null;
    this.input = el("input", { type: "search", id: "sample-search", placeholder: "Words in prompts, responses, reasons", oninput: () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.set({ query: this.input.value }), 120);
    } });
    this.set({});
    Browser.current = this;
  }

  // Change the state and show the page that follows from it; anything but "more" starts at the top.
  set(change) {
    if ("source" in change) Object.assign(this.state, { iteration: "all", show: "all", sort: "prompt", prompt: null });
    this.state = { limit: PAGE[this.state.sort === "prompt" ? "prompts" : "samples"], ...this.withoutLimit(), ...change };
    if ("sort" in change && !("limit" in change)) this.state.limit = PAGE[change.sort === "prompt" ? "prompts" : "samples"];
    if (!("query" in change) && !("limit" in change)) this.drawControls();
    this.draw();
  }

  withoutLimit() {
    const { limit, ...rest } = this.state;
    return rest;
  }

  // From elsewhere on the page: search for a text in all samples and go there.
  find(text) {
    this.input.value = text;
    this.set({ iteration: "all", show: "all", prompt: null });
    this.set({ query: text });
    document.getElementById("samples").scrollIntoView();
    this.input.focus({ preventScroll: true });
  }

  get source() {
    return this.sources.find(({ id }) => id === this.state.source);
  }

  drawControls() {
    const { run, kind } = this.source;
    const rows = run[kind];
    const iterations = [...new Set(rows.map((row) => row.iteration))];
    const names = [...new Set(rows.flatMap((row) => Object.keys(row.scores)))];
    const shows = [["all", "all"], ["selected", "selected"], ["unselected", "not selected"], ["discarded", "discarded"]]
      .filter(([key]) => key === "all" || rows.some((row) => SHOWN[key](row)));
    const sorts = [["prompt", "by prompt"], ["reward down", "reward, highest first"], ["reward up", "reward, lowest first"],
      ["tokens down", "longest first"], ["tokens up", "shortest first"],
      ...(names.length > 1 ? names.flatMap((name) => [[`${name} down`, `${name}, highest first`], [`${name} up`, `${name}, lowest first`]]) : [])];
    const { state } = this;
    const bar = (name, label, options) => (options.length > 1 ? select(label, options, state[name], (value) => this.set({ [name]: value })) : null);
    this.controls.replaceChildren(...[
      bar("source", "Show", this.sources.map(({ id, label }) => [id, label])),
      el("label", { class: "field grow" }, el("span", {}, "Search"), this.input),
      bar("iteration", "Iteration", [["all", "all"], ...iterations.map((i) => [String(i), i === 0 ? "0, before training" : String(i)])]),
      bar("show", "Which", shows),
      bar("sort", "Order", sorts),
      state.prompt === null ? null : button("One prompt ✕", () => this.set({ prompt: null }), { class: "chip", "aria-label": "Show all prompts again" }),
    ].filter(Boolean));
    this.note.replaceChildren(leftOutSentence(run[`${kind}_tallies`], kind));
  }

  found(search) {
    const { iteration, show, prompt } = this.state;
    const hits = new Map(); // prompt -> whether the search hits it
    const inPrompt = (row) => {
      if (!hits.has(row.prompt)) hits.set(row.prompt, matches(search, this.data.prompts[row.prompt].messages.map(([, text]) => text).join("\n")));
      return hits.get(row.prompt);
    };
    return this.source.run[this.source.kind].filter((row) => (iteration === "all" || String(row.iteration) === iteration)
      && SHOWN[show](row) && (prompt === null || row.prompt === prompt)
      && (!search || matches(search, row.response) || matches(search, row.discarded || "") || inPrompt(row)));
  }

  draw() {
    const search = pattern(this.state.query);
    const rows = this.found(search);
    const byPrompt = this.state.sort === "prompt";
    const groups = byPrompt ? grouped(rows) : null;
    const size = byPrompt ? groups.length : rows.length;
    this.status.textContent = `${count(rows.length, "response")}${byPrompt ? ` to ${count(groups.length, "prompt")}` : ""}${rows.length ? "" : ": nothing matches"}`;
    if (byPrompt) {
      this.list.replaceChildren(...groups.slice(0, this.state.limit).map((group) => this.promptCard(group, search)));
    } else {
      const [name, direction] = splitLast(this.state.sort);
      const value = (row) => (name === "reward" || name === "tokens" ? row[name] : row.scores[name] ?? null);
      rows.sort((a, b) => order(value(a), value(b), direction === "down"));
      this.list.replaceChildren(...rows.slice(0, this.state.limit).map((row) => this.sampleCard(row, search)));
    }
    this.more.hidden = size <= this.state.limit;
  }

  promptCard(rows, search) {
    const prompt = this.data.prompts[rows[0].prompt];
    const byIteration = new Map();
    for (const row of rows) byIteration.set(row.iteration, [...(byIteration.get(row.iteration) || []), row]);
    return el("article", { class: "card" }, el("header", {}, el("div", { class: "prompt-id" }, visible(prompt.id)), promptBlock(prompt, search)),
      [...byIteration].map(([iteration, some]) => el("div", { class: "round" },
        el("h4", {}, iteration === 0 ? "Before training" : `Iteration ${iteration}`),
        some.sort((a, b) => order(a.reward, b.reward, true)).map((row) => response(row, search)))));
  }

  sampleCard(row, search) {
    const prompt = this.data.prompts[row.prompt];
    return el("article", { class: "card" }, el("header", {}, el("div", { class: "prompt-id" }, visible(prompt.id), ` · iteration ${row.iteration} · `,
      button("this prompt in all iterations", () => this.set({ prompt: row.prompt, sort: "prompt", iteration: "all", show: "all" }), { class: "link" })),
    promptBlock(prompt, search)), response(row, search));
  }
}

const SHOWN = {
  all: () => true,
  selected: (row) => row.selected === true,
  unselected: (row) => row.selected === false && !row.discarded,
  discarded: (row) => Boolean(row.discarded),
};

const ENDINGS = { eos: "ended by itself", stop: "ended by a stop sequence", length: "cut at the length limit" };

function response(row, search) {
  const scores = Object.entries(row.scores).filter(([, value]) => value !== row.reward);
  return el("div", { class: row.selected ? "response selected" : row.discarded ? "response discarded" : "response" },
    el("div", { class: "response-head" },
      el("b", { class: "reward" }, num(row.reward)),
      row.selected ? el("span", { class: "pill" }, "selected") : null,
      row.discarded ? el("span", { class: "pill discard" }, "discarded: ", visible(String(row.discarded), search)) : null,
      el("span", { class: "meta" }, [
        ...scores.map(([name, value]) => [visible(name), ` ${num(value)}`]),
        isNumber(row.tokens) ? [count(row.tokens, "token")] : null,
        row.finish ? [ENDINGS[row.finish] ? ENDINGS[row.finish] : visible(String(row.finish))] : null,
      ].filter(Boolean).flatMap((one, i) => [i ? " · " : "", one]))),
    block(row.response, search), omission(row.omitted));
}

// By prompt, in the order of first appearance.
function grouped(rows) {
  const groups = new Map();
  for (const row of rows) {
    if (!groups.has(row.prompt)) groups.set(row.prompt, []);
    groups.get(row.prompt).push(row);
  }
  return [...groups.values()];
}

function splitLast(text) {
  const at = text.lastIndexOf(" ");
  return [text.slice(0, at), text.slice(at + 1)];
}

function leftOutSentence(tallies, kind) {
  const sum = (name) => tallies.reduce((total, one) => total + one[name], 0);
  const [all, shown] = [sum("samples"), sum("shown_samples")];
  const where = kind === "samples" ? "iterations/*/samples.jsonl" : "held_out/*.jsonl";
  if (all === shown) return `All ${all.toLocaleString("en-US")} responses that were recorded.`;
  const how = kind === "samples"
    ? "Whole prompts with all their responses: those of each iteration’s highest and lowest rewards, longest, shortest and discarded responses, then a share that is the same prompts in every iteration."
    : "A share of the prompts, the same at every evaluation.";
  return `${shown.toLocaleString("en-US")} of ${all.toLocaleString("en-US")} responses (${percent(shown / all)}) are on this page. ${how} The others are in ${where}.`;
}
