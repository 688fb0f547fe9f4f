// Line and area charts over the last samples, as SVG that says in words what it shows.

import { NONE, byId, duration, el, show, svg } from "./dom.js";

const HEIGHT = 176;
const LEFT = 52;
const BOTTOM = 20;
const TOP = 8;
const SPANS_S = [60, 120, 300, 600];
const DASHES = ["", "6 3", "2 3", "9 3 2 3"];

// A round number at or above the value; in powers of two where the values are bytes.
function niceTop(value, binary) {
  if (binary) return 2 ** Math.ceil(Math.log2(Math.max(value, 1024)));
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return [1, 2, 5, 10].map((step) => step * power).find((top) => top >= value);
}

// Where things are: as wide as the place is, and as long ago as there are samples.
function place(id, samples) {
  const width = Math.max(240, byId(id).clientWidth);
  const ageS = samples.length ? samples[samples.length - 1].at_s - samples[0].at_s : 0;
  const spanS = SPANS_S.find((span) => span >= ageS) || SPANS_S[SPANS_S.length - 1];
  return { id, width, spanS, x: (age) => width - (Math.min(age, spanS) / spanS) * (width - LEFT) };
}

function linear(top) {
  const steps = [0, top / 2, top];
  return { ticks: steps, at: (value) => HEIGHT - BOTTOM - (value / top) * (HEIGHT - BOTTOM - TOP) };
}

function logarithmic(low, high) {
  const from = Math.floor(Math.log10(low));
  const to = Math.max(Math.ceil(Math.log10(high)), from + 1);
  const ticks = [];
  for (let power = from; power <= to; power += 1) ticks.push(10 ** power);
  const share = (value) => (Math.log10(value) - from) / (to - from);
  return { ticks, at: (value) => HEIGHT - BOTTOM - share(value) * (HEIGHT - BOTTOM - TOP) };
}

function frame(where, scale, words, format) {
  const parts = [];
  for (const tick of scale.ticks) {
    const y = scale.at(tick);
    parts.push(svg("line", { class: "rule", x1: LEFT, x2: where.width, y1: y, y2: y }));
    parts.push(svg("text", { x: LEFT - 6, y: y + 4, "text-anchor": "end" }, format(tick)));
  }
  for (const [share, anchor] of [[1, "start"], [0.5, "middle"], [0, "end"]]) {
    const text = share ? `${duration(where.spanS * share)} ago` : "now";
    parts.push(svg("text", { x: where.x(where.spanS * share), y: HEIGHT - 4, "text-anchor": anchor }, text));
  }
  return svg("svg", { class: "chart", viewBox: `0 0 ${where.width} ${HEIGHT}`, role: "img", "aria-label": words }, ...parts);
}

// Hatching, so that areas differ by more than their colour.
function pattern(id, style, at) {
  return svg("pattern", { id, width: 12 - 2 * at, height: 8, patternUnits: "userSpaceOnUse", patternTransform: `rotate(${30 * at})` },
    svg("rect", { class: `f-${style}`, width: 12, height: 8 }), svg("line", { class: "hatch", x1: 1, x2: 1, y1: 0, y2: 8 }));
}

const filled = (style, patternId) => (patternId ? { fill: `url(#${patternId})` } : { class: `f-${style}` });

function swatch(series, at, area, patterned) {
  const sign = area
    ? [svg("rect", { ...filled(series.style, patterned), width: 18, height: 10, rx: 2 })]
    : [svg("line", { class: `series s-${series.style}`, x1: 0, x2: 18, y1: 5, y2: 5, "stroke-dasharray": DASHES[at] })];
  return svg("svg", { width: 18, height: 10, "aria-hidden": "true" }, ...sign);
}

function legend(series, area, format) {
  const items = series.map((each, at) =>
    el("li", {}, swatch(each, at, area, each.pattern), el("span", {}, each.name), el("strong", {}, format(each.last))));
  return el("ul", { class: "legend" }, ...items);
}

function series(where, samples, wanted) {
  const end = samples.length ? samples[samples.length - 1].at_s : 0;
  return wanted.map(([name, style, pick]) => {
    const points = samples.map((sample) => [where.x(end - sample.at_s), pick(sample)]);
    return { name, style, points, last: points.length ? points[points.length - 1][1] : null };
  });
}

function words(title, drawn, format) {
  return `${title}: ${drawn.map((each) => `${each.name} ${each.last === null ? "none" : format(each.last)}`).join(", ")}`;
}

function nothing(where, chart, text) {
  chart.append(svg("text", { class: "none", x: (where.width + LEFT) / 2, y: HEIGHT / 2 }, text));
}

// wanted: [name, style, pick(sample) -> number or null]
export function lines(id, title, samples, wanted, format, { log = false, top = 0 } = {}) {
  const where = place(id, samples);
  const drawn = series(where, samples, wanted);
  const values = drawn.flatMap((each) => each.points.map(([, value]) => value)).filter((value) => value !== null && (!log || value > 0));
  const highest = Math.max(top, ...values, 0);
  const scale = log ? logarithmic(Math.min(...values, 1000), Math.max(highest, 1)) : linear(niceTop(highest));
  const chart = frame(where, scale, words(title, drawn, format), format);
  if (!values.length) nothing(where, chart, "nothing yet");
  drawn.forEach((each, at) => {
    for (const run of runs(each.points, log)) {
      const points = run.map(([x, value]) => `${x.toFixed(1)},${scale.at(value).toFixed(1)}`).join(" ");
      chart.append(svg("polyline", { class: `series s-${each.style}`, points, "stroke-dasharray": DASHES[at] }));
    }
  });
  show(id, chart, legend(drawn, false, (value) => (value === null ? NONE : format(value))));
}

// A line has gaps where there was nothing to measure; a point alone is drawn as a short line.
function runs(points, log) {
  const found = [];
  let run = [];
  for (const [x, value] of [...points, [0, null]]) {
    if (value !== null && (!log || value > 0)) {
      run.push([x, value]);
    } else if (run.length) {
      found.push(run.length > 1 ? run : [[run[0][0] - 2, run[0][1]], run[0]]);
      run = [];
    }
  }
  return found;
}

// The same, one upon the other.
export function stack(id, title, samples, wanted, format, { binary = false } = {}) {
  const where = place(id, samples);
  const drawn = series(where, samples, wanted);
  const sums = samples.map((_, at) => drawn.reduce((sum, each) => sum + each.points[at][1], 0));
  const scale = linear(niceTop(Math.max(...sums, 0), binary));
  const chart = frame(where, scale, words(title, drawn, format), format);
  let below = samples.map(() => 0);
  drawn.forEach((each, at) => {
    if (at) {
      each.pattern = `${id}-${at}`;
      chart.append(pattern(each.pattern, each.style, at));
    }
    const above = each.points.map(([, value], point) => below[point] + value);
    const upper = each.points.map(([x], point) => `${x.toFixed(1)},${scale.at(above[point]).toFixed(1)}`);
    const lower = each.points.map(([x], point) => `${x.toFixed(1)},${scale.at(below[point]).toFixed(1)}`).reverse();
    chart.append(svg("polygon", { ...filled(each.style, each.pattern), points: [...upper, ...lower].join(" ") }));
    below = above;
  });
  show(id, chart, legend(drawn, true, format));
}

// One bar of parts: [name, style, value].
export function bar(id, title, parts, format) {
  const whole = parts.reduce((sum, [, , value]) => sum + value, 0) || 1;
  const label = `${title}: ${parts.map(([name, , value]) => `${name} ${format(value)}`).join(", ")}`;
  const chart = svg("svg", { class: "bar", viewBox: "0 0 1000 30", preserveAspectRatio: "none", role: "img", "aria-label": label });
  let x = 0;
  for (const [, style, value] of parts) {
    const width = (value / whole) * 1000;
    chart.append(svg("rect", { class: `f-${style}`, x, y: 0, width: Math.max(0, width - 2), height: 30 }));
    x += width;
  }
  const items = parts.map(([name, style, value]) =>
    el("li", {}, swatch({ style }, 0, true), el("span", {}, name), el("strong", {}, format(value))));
  show(id, chart, el("ul", { class: "legend" }, ...items));
}
