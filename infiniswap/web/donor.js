// The page of a memory daemon.

import { bar, lines, stack } from "./charts.js";
import { byId, bytes, count, duration, notices, percent, rate, setText, state, table, tiles } from "./dom.js";
import { follow } from "./follow.js";

const LENT = [
  ["lent", "remote", (sample) => sample.used_bytes],
  ["free to lend", "zero", (sample) => sample.free_bytes],
];
const PRESSURE = [["pressure", "backup", (sample) => sample.pressure_percent]];
const PAGE_IO = [
  ["page-ins", "remote", (sample) => sample.ins],
  ["page-outs", "other", (sample) => sample.outs],
];
const COLUMNS = [
  ["Device", (lease) => lease.device],
  ["Of", (lease) => lease.host || "–"],
  ["State", (lease) => (lease.remaining_s <= 0 ? state("lapsed", "warn") : lease.leaving ? state(`${count(lease.leaving)} leaving`, "warn") : state("held", "good"))],
  ["Slabs", (lease) => count(lease.slabs), true],
  ["Memory", (lease) => bytes(lease.bytes), true],
  ["Ends in", (lease) => (lease.remaining_s > 0 ? duration(lease.remaining_s) : "any moment"), true],
];

function memoryParts(now) {
  const { memory, host } = now;
  if (!host) return [["lent", "remote", memory.used_bytes], ["free to lend", "zero", memory.free_bytes]];
  const headroom = Math.min(host.headroom_bytes, Math.max(0, host.available_bytes));
  const own = Math.max(0, host.total_bytes - host.available_bytes - memory.occupied_bytes);
  const rest = Math.max(0, host.total_bytes - own - memory.occupied_bytes - headroom);
  return [
    ["programs of this host", "zero", own],
    ["occupied by slabs", "remote", memory.occupied_bytes],
    ["spare", "track", rest],
    ["headroom kept", "pending", headroom],
  ];
}

function draw(now, samples) {
  const last = samples[samples.length - 1];
  document.title = `${location.host} · Infiniswap memory daemon`;
  setText(byId("name"), location.host);
  setText(byId("facts"), `version ${now.version}, ${now.state}, up ${duration(now.uptime_s)}, RDMA ${now.rdma}`);
  notices("notices", now.findings);
  tiles("tiles", [
    ["Lent", bytes(now.memory.used_bytes), `of ${bytes(now.memory.total_bytes)}`],
    ["Free to lend", bytes(now.memory.free_bytes), ""],
    ["Host has available", bytes(now.host ? now.host.available_bytes : null), now.host ? `of ${bytes(now.host.total_bytes)}` : ""],
    ["Pressure", percent(now.host ? now.host.pressure_percent : null), ""],
    ["Leases", count(now.leases.length), `with ${count(now.slabs)} slabs`],
    ["Taken back", count(now.evicted + now.evicted_by_force), `${count(now.evicted_by_force)} by force`],
  ]);
  bar("memory", "Memory of this host", memoryParts(now), bytes);
  if (last) {
    stack("lent", "Memory", samples, LENT, bytes, { binary: true });
    lines("pressure", "Pressure", samples, PRESSURE, percent, { top: 10 });
    lines("io", "Page I/O a second", samples, PAGE_IO, rate);
  }
  table("leases", COLUMNS, now.leases, "No device borrows memory here.");
}

follow(draw);
