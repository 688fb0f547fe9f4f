// The slabs as a picture: a square each, or one for some neighbours where there are many. Filled: remote memory; hollow:
// none; the stronger the colour, the more page I/O. Arrow keys, or a pointer, choose one, and words say what it is.

import { byId, bytes, count, el, rate, setText, svg } from "./dom.js";

const LIMITS = [0.05, 1, 10, 100, 1000]; // page I/O a second of a slab, from which the next colour counts
const NAMES = ["idle", "up to 1/s", "up to 10/s", "up to 100/s", "up to 1,000/s", "more"];
const GAP = 2;
const PAGE_BYTES = 4096;
const SEVERAL = -2;

const level = (activity) => LIMITS.filter((limit) => activity >= limit).length;

export class Heat {
  constructor(id, wordsId, legendId) {
    this.words = byId(wordsId);
    this.chosen = -1;
    this.picture = svg("svg", { class: "heat", role: "application", tabindex: 0, "aria-describedby": wordsId });
    byId(id).append(this.picture);
    this.picture.addEventListener("keydown", (event) => this.key(event));
    this.picture.addEventListener("pointermove", (event) => this.point(event));
    this.picture.addEventListener("pointerdown", (event) => this.point(event));
    this.rects = [];
    this.legend(byId(legendId));
    new ResizeObserver(() => this.data && this.layout()).observe(byId(id));
  }

  legend(list) {
    const sign = (classes) => svg("svg", { class: "heat", width: 14, height: 14, "aria-hidden": "true" },
      svg("rect", { class: classes, x: 2, y: 2, width: 10, height: 10, rx: 2 }));
    const items = NAMES.map((name, at) => el("li", {}, sign(`mapped h${at}`), name));
    items.push(el("li", {}, sign("free h0"), "hollow: no remote memory"));
    items.push(el("li", {}, sign("part h0"), "framed: in part, coming or leaving"));
    list.replaceChildren(...items);
    list.querySelectorAll("svg").forEach((each) => each.style.setProperty("width", "14px"));
  }

  draw(data, peers) {
    this.data = data;
    this.peers = peers;
    if (this.rects.length !== data.activity.length) {
      this.rects = data.activity.map(() => svg("rect", { rx: 2 }));
      this.picture.replaceChildren(...this.rects);
      this.chosen = -1;
    }
    this.layout();
    this.rects.forEach((rect, at) => {
      const slabs = this.slabsOf(at);
      const kind = data.changing[at] ? "part" : data.mapped[at] === 0 ? "free" : data.mapped[at] < slabs ? "part" : "mapped";
      const classes = `${kind} h${level(data.activity[at])}${at === this.chosen ? " chosen" : ""}`;
      if (rect.getAttribute("class") !== classes) rect.setAttribute("class", classes);
    });
    this.picture.setAttribute("aria-label", `${this.summary()} Arrow keys choose one.`);
    this.tell();
  }

  layout() {
    const width = Math.max(200, this.picture.parentElement.clientWidth);
    const cells = this.rects.length;
    const fitting = Math.sqrt((width * 300) / cells);
    const size = Math.min(34, Math.max(11, Math.floor(fitting)));
    this.columns = Math.max(1, Math.min(cells, Math.floor(width / size)));
    const rows = Math.ceil(cells / this.columns);
    this.size = size;
    this.picture.setAttribute("viewBox", `0 0 ${width} ${rows * size}`);
    this.picture.style.setProperty("height", `${rows * size}px`);
    this.rects.forEach((rect, at) => {
      rect.setAttribute("x", (at % this.columns) * size + 1.5);
      rect.setAttribute("y", Math.floor(at / this.columns) * size + 1.5);
      rect.setAttribute("width", size - GAP - 1);
      rect.setAttribute("height", size - GAP - 1);
    });
  }

  slabsOf(at) {
    const each = this.data.slabs_per_cell;
    return Math.min(each, this.data.slabs - at * each);
  }

  summary() {
    const mapped = this.data.mapped.reduce((sum, value) => sum + value, 0);
    const hot = this.data.activity.filter((value) => value >= LIMITS[2]).length;
    const each = this.data.slabs_per_cell;
    const cell = each > 1 ? ` Each square is ${count(each)} slabs.` : "";
    return `${count(mapped)} of ${count(this.data.slabs)} slabs have remote memory; ${count(hot)} squares see 10 page I/O a second or more.${cell}`;
  }

  key(event) {
    const moves = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: this.columns, ArrowUp: -this.columns, Home: -Infinity, End: Infinity };
    if (!(event.key in moves) || !this.rects.length) return;
    event.preventDefault();
    const from = this.chosen < 0 ? 0 : this.chosen + moves[event.key];
    this.choose(Math.max(0, Math.min(this.rects.length - 1, from)));
  }

  point(event) {
    const at = this.rects.indexOf(event.target);
    if (at >= 0) this.choose(at);
  }

  choose(at) {
    if (this.chosen >= 0) this.rects[this.chosen].classList.remove("chosen");
    this.chosen = at;
    this.rects[at].classList.add("chosen");
    this.tell();
  }

  tell() {
    const at = this.chosen;
    if (at < 0) {
      setText(this.words, "Point at a square, or focus the picture and use the arrow keys.");
      return;
    }
    const { data } = this;
    const first = at * data.slabs_per_cell;
    const slabs = this.slabsOf(at);
    const name = slabs > 1 ? `Slabs ${count(first)} to ${count(first + slabs - 1)}` : `Slab ${count(first)}`;
    const peer = data.peer[at] === SEVERAL ? "several peers" : data.peer[at] < 0 ? "" : this.peers[data.peer[at]]?.peer || "a peer";
    const held = data.mapped[at] ? `${data.mapped[at] < slabs ? `${count(data.mapped[at])} mapped to ` : "mapped to "}${peer}` : "no remote memory";
    const changing = data.changing[at] ? `, ${count(data.changing[at])} coming or leaving` : "";
    setText(this.words, `${name}: ${held}${changing}; ${rate(data.activity[at])} page I/O a second; `
      + `${bytes(data.remote_pages[at] * PAGE_BYTES)} remote, ${bytes(data.backup_pages[at] * PAGE_BYTES)} on the backup, `
      + `${bytes(data.pending_pages[at] * PAGE_BYTES)} pending.`);
  }
}
