// The page of a device.

import { lines, stack } from "./charts.js";
import { byId, bytes, count, duration, micros, notices, percent, rate, setText, state, table, tiles } from "./dom.js";
import { follow } from "./follow.js";
import { Heat } from "./heat.js";

const heat = new Heat("heat", "heat-cell", "heat-legend");
const IN_SOURCES = [
  ["remote memory", "remote", (sample) => sample.ins.remote],
  ["pending buffer", "pending", (sample) => sample.ins.pending],
  ["backup", "backup", (sample) => sample.ins.backup],
  ["never written", "zero", (sample) => sample.ins.zero],
];
const OUT_TARGETS = [
  ["remote memory", "remote", (sample) => sample.outs.remote],
  ["backup", "backup", (sample) => sample.outs.backup],
];
const LATENCIES = [
  ["in, remote", "remote", "remote"],
  ["in, backup", "backup", "backup"],
  ["out, remote", "other", "write_remote"],
  ["out, backup", "pending", "write_backup"],
];
const PEER_STATES = { up: "good", slow: "warn", held: "warn", draining: "warn" };
const COLUMNS = [
  ["Peer", (peer) => peer.peer],
  ["State", (peer) => state(peer.state, PEER_STATES[peer.state] || "bad")],
  ["Way", (peer) => (peer.transport || "–").toUpperCase()],
  ["Slabs", (peer) => count(peer.slabs), true],
  ["Free there", (peer) => bytes(peer.free_bytes), true],
  ["Mean latency", (peer) => micros(peer.latency_us), true],
  ["Out", (peer) => count(peer.in_flight), true],
  ["Failures", (peer) => count(peer.failures), true],
];

const sum = (values) => Object.values(values).reduce((total, value) => total + value, 0);

function draw(now, samples) {
  const last = samples[samples.length - 1];
  const status = now.status;
  document.title = `${status.name} · Infiniswap device`;
  setText(byId("name"), status.name);
  setText(byId("facts"), `${bytes(status.size_bytes)}, ${count(status.slabs)} slabs of ${bytes(status.slab_bytes)}, `
    + `backup ${status.backup}, up ${duration(status.uptime_s)}`);
  notices("notices", now.findings);
  if (last) {
    const ins = sum(last.ins);
    const stored = ins - last.ins.zero;
    tiles("tiles", [
      ["Page-ins", rate(ins), "/s"],
      ["Page-outs", rate(sum(last.outs)), "/s"],
      ["From remote memory", stored > 0 ? percent((100 * last.ins.remote) / stored) : "–", "of page-ins"],
      ["Page-in p99, remote", micros(last.p99_us.remote), ""],
      ["Pending", bytes(last.pending_bytes), `of ${bytes(now.pending_limit_bytes)}`],
      ["Slabs mapped", count(status.mapped_slabs), `of ${count(status.slabs)}`],
    ]);
  }
  heat.draw(now.heat, now.peers);
  setText(byId("heat-summary"), heat.summary());
  stack("ins", "Page-ins by source, a second", samples, IN_SOURCES, rate);
  stack("outs", "Page-outs by target, a second", samples, OUT_TARGETS, rate);
  for (const which of ["p50", "p99"]) {
    const wanted = LATENCIES.map(([name, style, source]) => [name, style, (sample) => sample[`${which}_us`][source]]);
    lines(which, `Latency ${which}`, samples, wanted, micros, { log: true });
  }
  table("peers", COLUMNS, now.peers, "No peers are configured: everything goes to the backup.");
}

follow(draw);
