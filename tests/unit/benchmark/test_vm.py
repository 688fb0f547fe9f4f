"""The parts of scripts/bench --vm that need no machine: what is read and what is told.

The outputs of perftest are those of version 4.5 on soft-RoCE in an emulated machine.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from harness.scenario import parse as parse_scenario

from infiniswap.shared.errors import UserError
from scripts.benchmark.contenders import Setting
from scripts.benchmark.processes import Programs
from scripts.benchmark.vm import __main__ as command
from scripts.benchmark.vm import guest, load, nvme, perftest, results
from scripts.benchmark.vm.device import Counts, VmDevice, parse_counts
from scripts.benchmark.vm.guest import Plan, Way
from scripts.benchmark.vm.results import ENGINE, FLOOR, FLOOR_EVENTS, KERNEL, READ_LATENCY, SOCKET, WORKLOADS, Sample

RULE = "-" * 87
LATENCY = f"""{RULE}
Device not recognized to implement inline feature. Disabling it
{RULE}
                    RDMA_Read Latency Test
 Dual-port       : OFF\t\tDevice         : rxe0
 Number of qps   : 1\t\tTransport type : IB
 Mtu             : 4096[B]
 GID index       : 1
{RULE}
 local address: LID 0000 QPN 0x0012 PSN 0x148bb OUT 0x80 RKey 0x0003cd VAddr 0x0055555559c000
 GID: 00:00:00:00:00:00:00:00:00:00:255:255:10:98:00:01
{RULE}
 #bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec]    t_avg[usec]    t_stdev[usec]   \
99% percentile[usec]   99.9% percentile[usec]
 4096    1000          30.71          1836.99      43.58    \t       42.41       \t20.67  \t\t142.03  \t\t1836.99
{RULE}
"""
BANDWIDTH = f"""{RULE}
                    RDMA_Write BW Test
 TX depth        : 128
 CQ Moderation   : 1
{RULE}
 remote address: LID 0000 QPN 0x001e PSN 0x765e98 RKey 0x000eda VAddr 0x005555555a9000
{RULE}
 #bytes     #iterations    BW peak[MB/sec]    BW average[MB/sec]   MsgRate[Mpps]
 65536      7719             0.00               160.76 \t\t   0.002572
{RULE}
"""
TCP_TABLE = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1CE9 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0100007F:4853 0100007F:D2F0 01 00000000:00000000 00:00000000 00000000     0        0 2 1 0 20 0 0 10 -1
"""


def test_latency_of_perftest() -> None:
    """Figures are found by the names above them: mean, typical and 99 %, not minimum, maximum or 99.9 %."""
    assert perftest.parse_latency(LATENCY) == perftest.Latency(mean_us=42.41, p50_us=43.58, p99_us=142.03)


def test_bandwidth_of_perftest() -> None:
    """The average counts, not the peak, which is 0 in a run by time; both spellings of the unit are 2^20 bytes."""
    assert perftest.parse_mib_per_s(BANDWIDTH) == 160.76
    assert perftest.parse_mib_per_s(BANDWIDTH.replace("MB/sec", "MiB/sec")) == 160.76


@pytest.mark.parametrize(
    "output",
    [
        "",
        " Couldn't connect to 127.0.0.1:18515\nUnable to init the socket connection\n",
        LATENCY.replace("t_avg[usec]", "t_other[usec]"),
        LATENCY.replace("142.03", ""),
        LATENCY[: LATENCY.index(" 4096    1000")],
        BANDWIDTH,
    ],
    ids=["nothing", "no connection", "no average", "a figure less", "cut off", "another tool"],
)
def test_no_latency(output: str) -> None:
    """Whatever else a tool prints is no measurement, and never figures under wrong names."""
    with pytest.raises(ValueError, match=r"."):
        perftest.parse_latency(output)


@pytest.mark.parametrize(
    "output",
    ["", BANDWIDTH.replace("MB/sec", "Gb/sec"), BANDWIDTH.replace("160.76", "0.00"), LATENCY],
    ids=["nothing", "other units", "nothing moved", "another tool"],
)
def test_no_bandwidth(output: str) -> None:
    """Other units are not taken for MiB/s, and nothing moved is no bandwidth."""
    with pytest.raises(ValueError, match=r"."):
        perftest.parse_mib_per_s(output)


def test_listening_is_seen_in_the_tables() -> None:
    """A listener counts, in either family; a connection on the same port does not."""
    assert perftest.listens({"tcp": TCP_TABLE}, 0x1CE9)
    assert not perftest.listens({"tcp": TCP_TABLE}, 0x4853)
    assert perftest.listens({"tcp": "heading\n", "tcp6": TCP_TABLE}, 0x1CE9)
    assert not perftest.listens({}, 0x1CE9)


FAKE_TOOL = """#!{python}
import socket, sys
port = int(sys.argv[sys.argv.index("-p") + 1])
if sys.argv[-1] == "127.0.0.1":
    socket.create_connection(("127.0.0.1", port), 10).close()
    {client}
else:
    with socket.create_server(("127.0.0.1", port)) as server:
        server.accept()
    print("server", *sys.argv[1:], file=sys.stderr)
"""


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int) -> Iterator[Programs]:
    """A folder at the front of PATH; perftest's port is one that is free."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(perftest, "PORT", unused_tcp_port)
    with Programs(tmp_path, {}) as programs:
        yield programs


@pytest.fixture
def unused_tcp_port() -> int:
    """A port of the loopback interface."""
    from scripts.benchmark.processes import free_port

    return free_port()


def make_tool(folder: Path, name: str, client: str) -> None:
    """A program that takes one connection as a server, and as a client does what the line client says."""
    path = folder / name
    path.write_text(FAKE_TOOL.format(python=sys.executable, client=client))
    path.chmod(0o755)


WHERE = perftest.Endpoint("rxe0", 3, "127.0.0.1")


def test_server_and_client_are_told_the_same(tools: Programs, tmp_path: Path) -> None:
    """Both ends get the same options, the client the address besides; it comes when the server listens."""
    make_tool(tmp_path, "ib_read_lat", f"print({LATENCY!r})")
    assert perftest.read_latency(tools, WHERE, 4096, 0.5, events=True).mean_us == 42.41
    said = (tmp_path / "ib_read_lat.log").read_text()
    assert said.split() == f"server -s 4096 -n 5000 -e -d rxe0 -x 3 -F -p {perftest.PORT}".split()


@pytest.mark.parametrize(
    ("client", "said"),
    [("sys.exit('no such GID')", "no such GID"), ("print('nothing')", "no line of figures")],
    ids=["fails", "says nothing"],
)
def test_a_failing_tool_is_one_sentence(tools: Programs, tmp_path: Path, client: str, said: str) -> None:
    """What the client said, or that it said nothing, is in the error."""
    make_tool(tmp_path, "ib_write_bw", client)
    with pytest.raises(UserError, match=said):
        perftest.bandwidth_mib_per_s(tools, WHERE, "ib_write_bw", 4096, 1.0)


def fio_output(**changes: Any) -> str:
    """fio 3.33's report of a job that wrote 1000 times 4 KiB in two seconds, with latencies of submission and all."""
    percentile = {"50.000000": 52_000, "99.000000": 410_000}
    done = {
        "total_ios": 1000,
        "bw_bytes": 2 << 20,
        "runtime": 2000,
        "lat_ns": {"mean": 60_500.5, "percentile": percentile},
    }
    job = {"error": 0, "read": {"total_ios": 0, "runtime": 0}, "write": {**done, **changes}}
    return "fio: connected to NBD server\n" + json.dumps({"jobs": [job]})


def test_load_reads_the_whole_latency() -> None:
    """What a caller waits for, submission included, and the time that requests took."""
    assert load.parse(fio_output(), writes=True) == load.Load(2.0, 60.5005, 52.0, 410.0, 2.0)
    words = load.arguments(["--ioengine=x"], READ_LATENCY, 1 << 20, 1.0, 0)
    assert words[0] == "fio"
    assert {"--lat_percentiles=1", "--clat_percentiles=0", "--ioengine=x", "--iodepth=1", "--rw=randread"} < set(words)


@pytest.mark.parametrize("output", ["", fio_output(total_ios=0), fio_output(runtime=0)])
def test_load_that_did_nothing(output: str) -> None:
    """No figures come of it."""
    with pytest.raises(ValueError, match=r"."):
        load.parse(output, writes=True)


def peer(latency_total_us: float, latency_count: int) -> dict[str, Any]:
    """What counts in a row of /v1/peers."""
    return {"latency_total_us": latency_total_us, "latency_count": latency_count}


def stats(remote: int, pending: int, written: int) -> dict[str, Any]:
    """What counts in /v1/stats."""
    return {"reads": {"remote": remote, "pending": pending, "backup": 0, "zero": 0}, "writes": {"remote": written}}


def test_counts_of_an_interval() -> None:
    """What happened before the interval is in none of its figures; all peers count together."""
    before = parse_counts([peer(9e9, 10), peer(1e9, 10)], stats(100, 100, 7))
    after = parse_counts([peer(9e9 + 300.0, 12), peer(1e9 + 100.0, 12)], stats(103, 101, 519))
    assert after.mean_latency_us(before) == pytest.approx(100.0)
    assert after.remote_share(before) == 0.75
    assert after.remote_bytes(before, written=True) == 512 * 4096
    assert after.remote_bytes(before, written=False) == 3 * 4096
    assert (before.mean_latency_us(before), before.remote_share(before)) == (None, None)


def test_engine_rate_is_by_the_time_of_the_requests(tmp_path: Path) -> None:
    """Pages to the daemon by the time that fio's requests took, not by that of fio's start and end."""
    with Programs(tmp_path, {}) as programs:
        device = VmDevice(Setting(programs, tmp_path, tmp_path, 1 << 26, 1 << 23, 1 << 26), "rdma", "10.0.0.1", 50)
        counts = (Counts(0, 0, 0, 0, 0), Counts(50.0, 2, 0, 0, 512))
        sample = guest.engine_sample(device, WORKLOADS[2], 1, load.Load(1.5, 1, 1, 1, runtime_s=0.5), counts)
    assert sample == Sample(1, "infiniswap-rdma/engine", WORKLOADS[2].name, mib_per_s=4.0)


def test_nvme_node() -> None:
    """The controller's number is read from the answer, and a path of a multipath namespace is not the device itself."""
    assert nvme.parse_instance("instance=12,cntlid=1\n") == 12
    with pytest.raises(ValueError, match="answered"):
        nvme.parse_instance("")
    assert nvme.node_name("nvme0c1n1") == "nvme0n1"
    assert nvme.node_name("nvme3n1") == "nvme3n1"


def latency(row: str, mean_us: float, round_number: int = 0) -> Sample:
    """Reads at depth 1."""
    return Sample(round_number, row, READ_LATENCY.name, mean_us=mean_us)


def rate(row: str, workload: int, mib_per_s: float, round_number: int = 0) -> Sample:
    """Another workload."""
    return Sample(round_number, row, WORKLOADS[workload].name, mib_per_s=mib_per_s)


RDMA = results.device_row("rdma", ENGINE).name


def test_ratios_are_taken_within_a_round() -> None:
    """A round in which all is slow does not change a ratio, and one that lacks an end counts for nothing."""
    samples = [latency(FLOOR.name, 40), latency(RDMA, 60), latency(FLOOR.name, 4000, 1), latency(RDMA, 6000, 1)]
    samples += [latency(RDMA, 1.0, 2)]
    assert results.ratio(samples, RDMA, FLOOR.name, READ_LATENCY.name, "mean_us") == 1.5
    assert results.ratio(samples, RDMA, "nbdkit/socket", READ_LATENCY.name, "mean_us") is None
    assert results.middle(samples, RDMA, READ_LATENCY.name, "mean_us") == 60
    assert results.middle(samples, RDMA, READ_LATENCY.name, "p50_us") is None


def test_targets() -> None:
    """Latency at most 1.5 times ib_read_lat, each bandwidth at least 0.8 of ib_write_bw; at the bound is reached."""
    samples = [latency(FLOOR.name, 40), latency(FLOOR_EVENTS.name, 120), latency(RDMA, 60)]
    samples += [rate(FLOOR.name, 3, 100), rate(RDMA, 3, 80), rate(FLOOR.name, 4, 100), rate(RDMA, 4, 79)]
    verdicts = [results.judge(samples, target) for target in results.TARGETS]
    assert [verdict.met for verdict in verdicts] == [True, None, None, True, False]
    assert [verdict.value.split(",")[0] for verdict in verdicts] == ["1.50x", "0.50x", "not measured", "0.80x", "0.79x"]
    slower = [replace(s, mean_us=61) if s.row == RDMA and s.mean_us else s for s in samples]
    assert results.judge(slower, results.TARGETS[0]).met is False


def test_best_rounds() -> None:
    """Beside the median stands the best round of each: the least latency, the most bandwidth."""
    samples = [latency(FLOOR.name, 40), latency(RDMA, 80), latency(FLOOR.name, 50, 1), latency(RDMA, 60, 1)]
    samples += [rate(FLOOR.name, 3, 100), rate(RDMA, 3, 50), rate(FLOOR.name, 3, 80, 1), rate(RDMA, 3, 70, 1)]
    assert results.judge(samples, results.TARGETS[0]).value == "1.60x, best 1.50x"
    assert results.judge(samples, results.TARGETS[3]).value == "0.69x, best 0.70x"


def cells(text: str, first: str) -> list[list[str]]:
    """The cells of every table line in text that begins with first."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return [row[1:] for row in rows if row[0] == first]


def test_tables() -> None:
    """Figures, ratios to the floor, and ratios to the device over RDMA reached in the same way."""
    kernel = results.device_row("rdma", KERNEL)
    tcp = results.device_row("tcp", KERNEL)
    samples = [
        Sample(0, FLOOR.name, READ_LATENCY.name, mean_us=40.0, p50_us=39.0, p99_us=90.0),
        Sample(0, kernel.name, READ_LATENCY.name, mib_per_s=9.0, mean_us=80.0, p50_us=70.0, p99_us=200.0),
        Sample(0, "nvme-rdma/kernel", READ_LATENCY.name, mib_per_s=9.0, mean_us=120.0, p50_us=99.0, p99_us=300.0),
        rate(tcp.name, 4, 50.0),
        rate(kernel.name, 4, 200.0),
    ]
    text = results.text(samples, ["nbdkit: is not there"], ["one note"])
    assert cells(text, "nvme-rdma -> nvmet, RAM disk") == [
        ["120.0", "99.0", "300.0", "-", "-", "-", "-"],
        ["3.00x", "-", "-", "-", "-"],
        ["1.50x", "-", "-", "-", "-"],
    ]
    # No floor at 256 KiB: it has no place in the second table, and a quarter in the third.
    assert cells(text, tcp.title) == [["-", "-", "-", "-", "-", "-", "50.0"], ["-", "-", "-", "-", "0.25x"]]
    assert "\nnot measured: nbdkit: is not there\n" in text
    assert "\none note\n" in text


def test_nothing_measured_is_no_failure_of_the_report() -> None:
    """The report of a run in which everything failed says why."""
    text = results.text([], ["everything: broke"], [])
    assert "not measured: everything: broke" in text
    assert "(nothing to compare with)" in text


def test_reads_from_elsewhere_are_told() -> None:
    """A latency of reads that did not come from the daemon says nothing of the way there."""
    sample = Sample(0, "infiniswap-rdma/socket", READ_LATENCY.name, mean_us=1.0, remote_share=0.5)
    assert "only 50.0% of the pages" in results.text([sample], [], [])
    assert "warning" not in results.text([replace(sample, remote_share=1.0)], [], [])


def test_json() -> None:
    """Samples, targets, and what could not be measured."""
    report = json.loads(results.as_json([latency(RDMA, 60)], ["x: broke"], {"kernel": "k"}, {"rounds": 1}))
    assert report["samples"][0]["mean_us"] == 60
    assert report["not_measured"] == ["x: broke"]
    assert report["rows"] == {RDMA: results.device_row("rdma", ENGINE).title}
    assert {target["met"] for target in report["targets"]} == {None}


def test_one_failure_costs_its_own_figures_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that fails is noted, and all others are made; each round begins with another contender."""
    asked: list[tuple[str, str]] = []

    def measure(target: list[str], workload: Any, *_: object) -> load.Load:
        asked.append((target[0], workload.name))
        if target == ["b"] and workload is READ_LATENCY:
            raise UserError("broke")
        return load.Load(1.0, 2.0, 3.0, 4.0, 5.0)

    def floor(*_: object) -> Iterator[Sample]:
        yield latency(FLOOR.name, 1.0)

    monkeypatch.setattr(load, "measure", measure)
    monkeypatch.setattr(guest, "measure_floor", floor)
    ways = [Way(results.device_row("tcp", SOCKET), ["a"]), Way(results.device_row("tcp", KERNEL), ["b"])]
    problems: list[str] = []
    with Programs(tmp_path, {}) as programs:
        samples = list(guest.measure_all(Plan(2, 1.0, programs, WHERE), ways, problems))
    assert len(samples) == 2 * len(WORKLOADS) * 3 - 2
    assert [problem.endswith(": broke") for problem in problems] == [True, True]
    assert [name for name, workload in asked if workload == READ_LATENCY.name] == ["a", "b", "b", "a"]
    assert "FAILED" in capsys.readouterr().out


def test_what_cannot_be_set_up_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a sentence, and the others are measured."""

    def refuse(*_: object) -> list[Way]:
        raise UserError("no such transport")

    def ways(setting: Setting, transport: str, *_: object) -> list[Way]:
        return refuse() if transport == "rdma" else [Way(results.device_row("tcp", SOCKET), [])]

    monkeypatch.setattr(guest, "device_ways", ways)
    monkeypatch.setattr(guest, "nvme_ways", refuse)
    monkeypatch.setattr(guest, "nbdkit_ways", refuse)
    problems: list[str] = []
    with Programs(tmp_path, {}) as programs, ExitStack() as undo:
        setting = Setting(programs, tmp_path, tmp_path, 1, 1, 1)
        found = guest.set_up(setting, guest.Where("10.0.0.1", 50), undo, problems)
    assert [way.row.name for way in found] == ["infiniswap-tcp/socket"]
    assert problems[0] == "infiniswap over RDMA: no such transport"
    assert len(problems) == 4
    assert "left out: no such transport" in capsys.readouterr().out


def test_scenario_for_the_machine(tmp_path: Path) -> None:
    """It asks for the same machine and packages as the scenario that measures, and passes arguments to it."""
    text = command.SCENARIO.read_text()
    made = command.scenario_text(text, command.SCENARIO, "--rounds 2")
    path = tmp_path / "x.sh"
    wanted, found = parse_scenario(path, text), parse_scenario(path, made)
    assert found == wanted
    assert ("ib_read_lat", "perftest") in found.packages
    assert f'BENCH_ARGUMENTS="--rounds 2"\n. "{command.SCENARIO}"\n' in made


def test_it_is_no_scenario_of_the_tests() -> None:
    """scripts/test runs what lies in scripts/vm/scenarios; a benchmark proves nothing there."""
    assert command.SCENARIO.is_file()
    assert command.SCENARIO.parent.name == "bench"


def test_a_machine_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its exit code is told, and nothing is written."""
    (tmp_path / "scripts/vm").mkdir(parents=True)
    (tmp_path / "scripts/vm/run").write_text("#!/bin/sh\nexit 124\n")
    (tmp_path / "scripts/vm/run").chmod(0o755)
    monkeypatch.setattr(command, "ROOT", tmp_path)
    with pytest.raises(UserError, match="exit code 124"):
        command.run(1, 1.0, 50, tmp_path / "out")
    assert not (tmp_path / "out").exists()
