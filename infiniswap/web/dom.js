// Elements and words. Text always goes in as text, never as HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, String(value));
  }
  for (const child of children) element.append(child);
  return element;
}

export const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
export const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
export const byId = (id) => document.getElementById(id);

export function show(id, ...children) {
  byId(id).replaceChildren(...children);
}

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text; // a reader of screens hears changes alone
}

// ---- words for numbers ----

const GROUPED = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const SHORT = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

export const NONE = "–";

export function count(value) {
  return value === null || value === undefined ? NONE : GROUPED.format(value);
}

export function rate(value) {
  if (value === null || value === undefined) return NONE;
  if (value >= 1e6) return `${SHORT.format(value / 1e6)}M`;
  if (value >= 1e4) return `${SHORT.format(value / 1e3)}k`;
  return value >= 100 ? GROUPED.format(value) : SHORT.format(value);
}

export function bytes(value) {
  if (value === null || value === undefined) return NONE;
  let at = 0;
  while (Math.abs(value) >= 1024 && at < UNITS.length - 1) {
    value /= 1024;
    at += 1;
  }
  return `${SHORT.format(value)} ${UNITS[at]}`;
}

export function micros(value) {
  if (value === null || value === undefined) return NONE;
  if (value >= 1e6) return `${SHORT.format(value / 1e6)} s`;
  return value >= 1e3 ? `${SHORT.format(value / 1e3)} ms` : `${SHORT.format(value)} µs`;
}

export function percent(value) {
  return value === null || value === undefined ? NONE : `${SHORT.format(value)} %`;
}

export function duration(seconds) {
  const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const whole = Math.max(0, Math.floor(seconds));
  const first = parts.findIndex(([size]) => whole >= size);
  if (first < 0) return "0 s";
  const [size, unit] = parts[first];
  const rest = parts[first + 1];
  const more = rest ? Math.floor((whole % size) / rest[0]) : 0;
  return `${Math.floor(whole / size)} ${unit}${more ? ` ${more} ${rest[1]}` : ""}`;
}

// ---- parts that both pages have ----

export function tiles(id, rows) {
  const list = rows.map(([name, value, unit]) =>
    el("dl", { class: "tile" }, el("dt", {}, name), el("dd", {}, value, " ", el("small", {}, unit || ""))));
  show(id, ...list);
}

// rows: findings, as infiniswap status has them.
export function notices(id, rows) {
  const list = rows.map(({ severity, code, about, detail }) =>
    el("p", { class: severity === "error" ? "notice bad" : "notice" }, el("b", {}, `${code} ${about}`.trim()), detail));
  const words = list.map((each) => each.textContent).join("\n");
  if (byId(id).dataset.words !== words) {
    byId(id).dataset.words = words;
    show(id, ...list);
  }
}

// columns: [heading, cell(row), isNumber]; a cell is text or an element.
export function table(id, columns, rows, empty) {
  if (!rows.length) {
    show(id, el("p", { class: "sub" }, empty));
    return;
  }
  const head = columns.map(([name, , number]) => el("th", { scope: "col", class: number && "number" }, name));
  const body = rows.map((row) => el("tr", {}, ...columns.map(([name, cell, number]) =>
    el("td", { class: number && "number", "data-label": name }, cell(row)))));
  show(id, el("table", {}, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...body)));
}

export function state(word, severity) {
  return el("span", { class: `state ${severity}` }, word);
}
