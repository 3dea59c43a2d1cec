"use strict";
// Building blocks: elements, numbers, texts. Everything that comes from a run goes into the page as a text node;
// no string is ever parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";

// An element. Attributes named on* are listeners, "css" holds custom properties; null children are left out.
function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "css") for (const [key, one] of Object.entries(value)) node.style.setProperty(key, one);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

// A button that looks like text unless told otherwise.
function button(label, onclick, attributes = {}) {
  return el("button", { type: "button", onclick, ...attributes }, label);
}

function select(label, options, value, onchange) {
  const box = el("select", { onchange: () => onchange(box.value) },
    options.map(([key, text]) => el("option", { value: key }, text)));
  box.value = value;
  return el("label", { class: "field" }, el("span", {}, label), box);
}

// ---------------------------------------------------------------- numbers

const DASH = "–";

// Four significant digits at most, a true minus; small and large numbers in scientific notation.
function num(value) {
  if (typeof value !== "number" || !Number.isFinite(value)) return DASH;
  const size = Math.abs(value);
  let text;
  if (size && (size < 1e-3 || size >= 1e6)) text = value.toExponential(1).replace(".0e", "e").replace("e+", "e");
  else if (size >= 1000 || Number.isInteger(value)) text = Math.round(value).toLocaleString("en-US");
  else text = value.toFixed(size >= 100 ? 1 : size >= 10 ? 2 : 3);
  return text.replace("-", "−");
}

function signed(value) {
  return (value > 0 ? "+" : "") + num(value);
}

function count(value, noun) {
  return `${value.toLocaleString("en-US")} ${noun}${value === 1 ? "" : "s"}`;
}

function percent(value) {
  return `${(100 * value).toFixed(value < 0.0995 ? 1 : 0)}%`;
}

function times(value) {
  return `${value < 9.95 ? value.toFixed(1) : Math.round(value)} times`;
}

function interval(pair) {
  return pair && pair[0] !== null && pair[1] !== null ? `${signed(pair[0])} to ${signed(pair[1])}` : "";
}

function isNumber(value) {
  return typeof value === "number" && Number.isFinite(value);
}

// ---------------------------------------------------------------- texts

// Characters that would be invisible, or would turn the writing around (bidirectional controls): shown by number.
const CONTROLS = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060\u2066-\u2069\ufeff\ufff9-\ufffb\p{Cs}]/u;

// A pattern for what was typed into a search field: letter case and what stands between words aside; null for nothing.
function pattern(query) {
  const escaped = query.trim().replace(/[.*+?^${}()|[\]\\/]/g, "\\$&");
  return escaped ? new RegExp(escaped.replace(/\s+/g, "[\\s\\p{P}]+"), "giu") : null;
}

// A text as nodes: matches of the search marked, control characters made visible.
function visible(text, search = null) {
  const nodes = [];
  let from = 0;
  if (search) {
    for (const match of text.matchAll(search)) {
      nodes.push(...controls(text.slice(from, match.index)), el("mark", {}, controls(match[0])));
      from = match.index + match[0].length;
    }
  }
  return nodes.concat(controls(text.slice(from)));
}

function controls(text) {
  const nodes = [];
  let plain = "";
  for (const character of text) {
    if (!CONTROLS.test(character)) {
      plain += character;
      continue;
    }
    const code = `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
    nodes.push(plain, el("span", { class: "control", title: "control character" }, code));
    plain = "";
  }
  return nodes.concat(plain).filter((node) => node !== "");
}

// A block of a model's or user's text, isolated from the direction of its surroundings; long ones open on demand.
function block(text, search = null, name = "text") {
  const body = el("div", { class: name, dir: "auto" }, text ? visible(text, search) : el("i", { class: "soft" }, "empty"));
  if (text.length < 900 && text.split("\n").length < 14) return body;
  body.classList.add("clamped");
  const more = button("Show all of it", () => {
    const open = body.classList.toggle("clamped");
    more.textContent = open ? "Show all of it" : "Show less";
    more.setAttribute("aria-expanded", String(!open));
  }, { class: "link", "aria-expanded": "false" });
  return el("div", {}, body, more);
}

// A prompt's messages. The role is shown where it tells more than "user".
function promptBlock(prompt, search = null) {
  return prompt.messages.map(([role, text, omitted]) => [
    role && (prompt.messages.length > 1 || role !== "user") ? el("div", { class: "role" }, visible(role)) : null,
    block(text, search, "text prompt-text"),
    omission(omitted),
  ]);
}

function omission(omitted) {
  return omitted ? el("p", { class: "note" }, `${count(omitted, "character")} left out of the middle`) : null;
}

// A prompt on one line, for tables: its last message.
function oneLine(prompt, length = 110) {
  const text = (prompt.messages.length ? prompt.messages[prompt.messages.length - 1][1] : "").replace(/\s+/g, " ").trim();
  return [...text].length > length ? [...text].slice(0, length).join("") + "…" : text;
}
