"use strict";
// Curves as inline SVG. The legend is the read-out: it shows the last values, and those under the pointer while it
// is over any chart of the same axis. Arrow keys move the same cursor.

const HEIGHT = 190;
const SMOOTHED_FROM = 60; // points: below that a noisy curve is readable as it is
const cursors = new Set(); // the charts on the page, which share one cursor

// lines: [{label, colour, dash, points: [[x, y or null]], band: [[x, low, high]] or undefined}]; of a path also
// across: Map of x -> where the point lies on the horizontal axis
function lineChart({ title, axis, lines, kind = "lines" }) {
  const places = [...new Set(lines.flatMap((line) => line.points.map(([x]) => x)))].sort((a, b) => a - b);
  const where = el("span", { class: "where" });
  const values = lines.map(() => el("b", {}));
  const legend = el("p", { class: "legend" }, where, lines.map((line, i) => el("span", { class: "entry" },
    swatch(line, kind), line.label ? el("span", {}, line.label) : null, values[i])));
  const plot = el("div", { class: "plot", tabindex: "0", role: "group", "aria-label": `${title}, arrow keys move along it` });
  const figure = el("figure", { class: "chart" }, el("figcaption", {}, title), legend, plot);
  const state = { axis, places, at: null, width: 0, frame: null };

  state.show = (x) => {
    const last = places[places.length - 1];
    const place = x === null ? null : nearest(places, x);
    state.at = place;
    where.textContent = places.length ? `${axis === "steps" ? "step" : "iteration"} ${place === null ? last : place}` : "";
    values.forEach((node, i) => { node.textContent = readOut(lines[i], place === null ? last : place, place === null); });
    if (state.frame) state.frame.mark(place);
  };
  state.draw = () => {
    const width = Math.round(plot.clientWidth);
    if (width < 40 || width === state.width) return;
    state.width = width;
    state.frame = { bars: drawBars, lines: drawLines, path: drawPath }[kind](width, places, lines);
    plot.replaceChildren(state.frame.node);
    state.show(state.at);
  };
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    moveCursor(axis, state.frame.invert(event.clientX - box.left));
  });
  plot.addEventListener("pointerleave", () => moveCursor(axis, null));
  plot.addEventListener("blur", () => moveCursor(axis, null));
  plot.addEventListener("focus", () => legend.setAttribute("aria-live", "polite"));
  plot.addEventListener("keydown", (event) => {
    const index = state.at === null ? places.length - 1 : places.indexOf(state.at);
    const next = { ArrowLeft: index - 1, ArrowRight: index + 1, Home: 0, End: places.length - 1 }[event.key];
    if (event.key === "Escape") moveCursor(axis, null);
    if (next === undefined) return;
    event.preventDefault();
    moveCursor(axis, places[Math.max(0, Math.min(places.length - 1, next))]);
  });
  cursors.add(state);
  new ResizeObserver(state.draw).observe(plot);
  state.show(null);
  return figure;
}

function moveCursor(axis, x) {
  for (const state of cursors) if (state.axis === axis && state.width) state.show(x);
}

function swatch(line, kind) {
  const css = { "--c": line.colour };
  if (kind === "bars") return svg("svg", { class: "swatch", viewBox: "0 0 10 10", css }, svg("rect", { class: "bar", width: 10, height: 10 }));
  return svg("svg", { class: "swatch wide", viewBox: "0 0 22 10", css },
    svg("path", { class: "line", d: "M1 5H21", "stroke-dasharray": line.dash }));
}

function nearest(places, x) {
  let best = places[0];
  for (const place of places) if (Math.abs(place - x) < Math.abs(best - x)) best = place;
  return best;
}

function readOut(line, place, lastWill) {
  const value = num(valueAt(line.points, place, lastWill));
  const across = kindOfPath(line) ? valueAt([...line.across], place, lastWill) : null;
  return isNumber(across) ? `${value} at ${num(across)}` : value;
}

function kindOfPath(line) {
  return line.across instanceof Map;
}

// The value at a place; for the end of the curve, its last value wherever that was.
function valueAt(points, place, lastWill) {
  const known = points.filter(([, y]) => isNumber(y));
  const found = known.find(([x]) => x === place);
  if (found) return found[1];
  return lastWill && known.length ? known[known.length - 1][1] : null;
}

// ---------------------------------------------------------------- scales and axes

function ticks(low, high, wanted) {
  const rough = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((one) => one * power).find((one) => one >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

function wholeTicks(low, high, wanted) {
  const found = ticks(low, high, wanted).filter(Number.isInteger);
  return found.length ? found : [low];
}

function extent(values, fromZero) {
  let [low, high] = [Math.min(...values), Math.max(...values)];
  if (fromZero) low = Math.min(0, low);
  const pad = high > low ? (high - low) * 0.06 : Math.abs(high) * 0.1 || 0.5;
  return [fromZero && low === 0 ? 0 : low - pad, high + pad];
}

// The ground of a chart: grid, labels, scales, the cursor.
function ground(width, [left, right], values, fromZero) {
  const [low, high] = extent(values.length ? values : [0], fromZero);
  const marks = ticks(low, high, 4);
  const labels = marks.map((mark) => tickLabel(mark, marks));
  const edge = { left: 12 + 6.6 * Math.max(...labels.map((label) => label.length)), right: width - 8, top: 8, bottom: HEIGHT - 24 };
  const x = (value) => edge.left + ((value - left) / (right - left)) * (edge.right - edge.left);
  const y = (value) => edge.bottom - ((value - low) / (high - low)) * (edge.bottom - edge.top);
  const node = svg("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, "aria-hidden": "true" });
  marks.forEach((mark, i) => node.append(
    svg("path", { class: "grid", d: `M${edge.left} ${y(mark)}H${edge.right}` }),
    svg("text", { class: "tick", x: edge.left - 6, y: y(mark) + 4, "text-anchor": "end" }, labels[i])));
  const invert = (pixel) => left + ((pixel - edge.left) / (edge.right - edge.left)) * (right - left);
  return { node, x, y, edge, invert };
}

function tickLabel(mark, marks) {
  const step = marks.length > 1 ? marks[1] - marks[0] : Math.abs(mark) || 1;
  const size = Math.max(...marks.map(Math.abs));
  if (size >= 1e5 || (size && size < 1e-3)) return mark ? mark.toExponential(1).replace(".0e", "e").replace("e+", "e").replaceAll("-", "−") : "0";
  const digits = Math.max(0, Math.min(6, -Math.floor(Math.log10(step) + 1e-9) + (Number.isInteger(Number((step / 10 ** Math.floor(Math.log10(step) + 1e-9)).toFixed(6))) ? 0 : 1)));
  return mark.toFixed(digits).replace("-", "−");
}

function labelPlaces({ node, x, edge }, places, wanted) {
  for (const mark of wholeTicks(places[0], places[places.length - 1], wanted)) {
    node.append(svg("text", { class: "tick", x: x(mark), y: HEIGHT - 6, "text-anchor": "middle" }, mark.toLocaleString("en-US")));
  }
}

// ---------------------------------------------------------------- the two kinds of charts

function drawLines(width, places, lines) {
  const bands = lines.flatMap((line) => (line.band || []).flatMap(([, low, high]) => [low, high]));
  const values = lines.flatMap((line) => line.points.map(([, y]) => y)).concat(bands).filter(isNumber);
  const span = places[places.length - 1] - places[0] || 1;
  const alone = places.length === 1 ? 0.5 : 0;
  const frame = ground(width, [places[0] - alone - span * 0.02, places[places.length - 1] + alone + span * 0.02], values, false);
  const { node, x, y, edge } = frame;
  labelPlaces(frame, places, Math.max(2, Math.min(8, Math.floor(width / 60))));
  for (const line of lines) {
    const group = svg("g", { css: { "--c": line.colour } });
    const points = line.points.filter(([, value]) => isNumber(value));
    if (line.band) group.append(...bandOf(line.band.filter((one) => isNumber(one[1]) && isNumber(one[2])), x, y));
    if (points.length > SMOOTHED_FROM) {
      group.append(svg("path", { class: "line raw", d: pathOf(points, x, y) }),
        svg("path", { class: "line", d: pathOf(smoothed(points), x, y), "stroke-dasharray": line.dash }));
    } else {
      group.append(svg("path", { class: "line", d: pathOf(points, x, y), "stroke-dasharray": line.dash }));
      if (points.length <= 30) group.append(...points.map(([px, py]) => svg("circle", { class: "dot", cx: x(px), cy: y(py), r: 2.6 })));
    }
    node.append(group);
  }
  const cursor = svg("g", { class: "cursor" });
  node.append(cursor);
  const mark = (place) => cursor.replaceChildren(...(place === null ? [] : [
    svg("path", { class: "hair", d: `M${x(place)} ${edge.top}V${edge.bottom}` }),
    ...lines.map((line) => [line, valueAt(line.points, place, false)]).filter(([, value]) => isNumber(value))
      .map(([line, value]) => svg("circle", { class: "spot", cx: x(place), cy: y(value), r: 4.5, css: { "--c": line.colour } })),
  ]));
  return { ...frame, mark };
}

// A point an iteration, joined in their order; some have their number beside them.
function drawPath(width, places, lines) {
  const xs = lines.flatMap((line) => [...line.across.values()]);
  const values = lines.flatMap((line) => line.points.map(([, y]) => y));
  const [left, right] = extent(xs, false);
  const frame = ground(width, [left, right], values, false);
  const { node, x, y } = frame;
  const marks = ticks(left, right, Math.max(2, Math.min(5, Math.floor(width / 80))));
  marks.forEach((mark) => node.append(svg("text", { class: "tick", x: x(mark), y: HEIGHT - 6, "text-anchor": "middle" }, tickLabel(mark, marks))));
  const every = Math.ceil(places.length / 6);
  const spot = (line, [place, value]) => [x(line.across.get(place)), y(value)];
  for (const line of lines) {
    const path = line.points.map((point, i) => `${i ? "L" : "M"}${spot(line, point).map((one) => one.toFixed(1)).join(" ")}`).join("");
    node.append(svg("g", { css: { "--c": line.colour } }, svg("path", { class: "line thin", d: path, "stroke-dasharray": line.dash }),
      line.points.map((point) => svg("circle", { class: "dot", cx: spot(line, point)[0], cy: spot(line, point)[1], r: 3 })),
      line.points.filter((_, i) => i % every === 0).map((point) => svg("text", { class: "tick", x: spot(line, point)[0], y: Math.max(10, spot(line, point)[1] - 7), "text-anchor": "middle" }, point[0]))));
  }
  const cursor = svg("g", { class: "cursor" });
  node.append(cursor);
  const mark = (place) => cursor.replaceChildren(...lines.filter((line) => line.across.has(place))
    .map((line) => [line, spot(line, [place, valueAt(line.points, place, false)])])
    .map(([line, [cx, cy]]) => svg("circle", { class: "spot", cx, cy, r: 5, css: { "--c": line.colour } })));
  const invert = (pixel) => lines.flatMap((line) => line.points.map((point) => [Math.abs(spot(line, point)[0] - pixel), point[0]]))
    .reduce((best, one) => (one[0] < best[0] ? one : best))[1];
  return { ...frame, mark, invert };
}

function drawBars(width, places, lines) {
  const heights = places.map((place) => lines.map((line) => valueAt(line.points, place, false) || 0));
  const totals = heights.map((some) => some.reduce((a, b) => a + b, 0));
  const frame = ground(width, [places[0] - 0.6, places[places.length - 1] + 0.6], totals, true);
  const { node, x, y, edge } = frame;
  labelPlaces(frame, places, Math.max(2, Math.min(10, Math.floor(width / 40))));
  const thick = Math.min(34, (x(1) - x(0)) * 0.72);
  const bars = places.map((place, i) => {
    let below = 0;
    return svg("g", { class: "stack" }, heights[i].map((height, j) => {
      const top = y(below + height);
      const bottom = y(below);
      below += height;
      return svg("rect", { class: "bar", x: x(place) - thick / 2, y: top, width: thick, height: Math.max(0, bottom - top), css: { "--c": lines[j].colour } });
    }));
  });
  node.append(...bars, svg("path", { class: "base", d: `M${edge.left} ${edge.bottom}H${edge.right}` }));
  const mark = (place) => bars.forEach((bar, i) => bar.classList.toggle("dim", place !== null && places[i] !== place));
  return { ...frame, mark };
}

function pathOf(points, x, y) {
  return points.map(([px, py], i) => `${i ? "L" : "M"}${x(px).toFixed(1)} ${y(py).toFixed(1)}`).join("");
}

function bandOf(band, x, y) {
  if (!band.length) return [];
  const upper = band.map(([px, , high]) => [px, high]);
  const lower = band.map(([px, low]) => [px, low]).reverse();
  if (band.length === 1) return band.map(([px, low, high]) => svg("path", { class: "whisker", d: `M${x(px)} ${y(low)}V${y(high)}` }));
  return [svg("path", { class: "band", d: `${pathOf(upper.concat(lower), x, y)}Z` })];
}

// Moving mean over a centred window of a twentieth of the points.
function smoothed(points) {
  const half = Math.max(2, Math.floor(points.length / 40));
  return points.map(([x], i) => {
    const window = points.slice(Math.max(0, i - half), i + half + 1);
    return [x, window.reduce((sum, [, y]) => sum + y, 0) / window.length];
  });
}
