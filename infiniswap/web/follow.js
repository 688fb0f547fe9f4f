// Asks the program how it stands, every few seconds while the page is seen, and keeps the samples of ten minutes.

import { byId, duration, setText } from "./dom.js";

const SAMPLES_MAX = 300;
const TIMEOUT_MS = 5000;
const PAUSE_MAX_MS = 5000;
const STALE_MS = 6000;

export function follow(draw) {
  let samples = [];
  let epoch = "";
  let heardAt = performance.now();
  let pauseMs = 2000;
  let timer = 0;
  let why = "no answer yet";

  function told() {
    const link = byId("link");
    const silentMs = performance.now() - heardAt;
    const stale = silentMs > STALE_MS;
    link.className = stale ? "link stale" : "link live";
    setText(link, stale ? `no news for ${duration(silentMs / 1000)}: ${why}` : "live");
  }

  async function ask() {
    const last = samples.length ? samples[samples.length - 1].seq : 0;
    try {
      const answer = await fetch(`/v1/view?after=${last}&epoch=${epoch}`, { signal: AbortSignal.timeout(TIMEOUT_MS) });
      if (!answer.ok) throw new Error(`the program answers ${answer.status}`);
      const view = await answer.json();
      if (view.epoch !== epoch) samples = []; // it was started again: its numbers begin anew
      epoch = view.epoch;
      samples = samples.concat(view.samples).slice(-SAMPLES_MAX);
      heardAt = performance.now();
      pauseMs = view.interval_s * 1000;
      draw(view.now, samples);
      document.documentElement.dataset.drawn = String(view.seq);
    } catch (error) {
      why = error instanceof TypeError ? "it cannot be reached" : error.name === "TimeoutError" ? "it does not answer" : error.message;
      pauseMs = Math.min(pauseMs * 2, PAUSE_MAX_MS);
    }
    told();
    clearTimeout(timer);
    if (!document.hidden) timer = setTimeout(ask, pauseMs);
  }

  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) ask();
  });
  setInterval(told, 1000);
  ask();
}
