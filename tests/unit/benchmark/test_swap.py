"""The parts of scripts/bench --swap that need no swap area: figures, tables, arguments, control groups."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from infiniswap.kernel_shim import zswap
from infiniswap.kernel_shim.sysfs import parse_swaps
from infiniswap.shared.errors import ExitCode, UserError
from scripts.benchmark.swap import __main__ as command
from scripts.benchmark.swap import results
from scripts.benchmark.swap.__main__ import Plan, choose_media, measure, parse_percents, tried
from scripts.benchmark.swap.area import run
from scripts.benchmark.swap.cgroup import STEP_BYTES, Cgroup, charges_zswap
from scripts.benchmark.swap.jobs import Figures, figures_of, redis_figures, set_command
from scripts.benchmark.swap.media import BehindZswap, BlockDevice, Zram
from scripts.benchmark.swap.results import Sample

FIGURES = Figures(1000, 2.0, 10.0, 90.0)
FULL = Sample(1, "a", "j", 100, FIGURES, 0, 0)


def half(rate: int) -> Sample:
    """The same job with half of its memory."""
    return replace(FULL, percent=50, figures=Figures(rate, 1.0, 20.0, 900.0), pages_in=7)


def test_table() -> None:
    """A row per medium: figures per share, and what is left of the full throughput; medians over rounds."""
    samples = [FULL, half(100), replace(half(300), round=2), replace(half(125), round=3), replace(FULL, medium="b")]
    table = results.job_table(samples, "j", {"a": "Medium A", "b": "Medium B"}, (100, 50)).splitlines()
    assert [cell.strip() for cell in table[0].split("|")[1:-1]] == [
        *("swap on", "op/s 100 %", "op/s 50 %", "p50 us 100 %", "p50 us 50 %", "p99 us 100 %", "p99 us 50 %"),
        "left at 50 %",
    ]
    assert [cell.strip() for cell in table[2].split("|")[1:-1]] == [
        *("Medium A", "500", "125", "10", "20", "90", "900", "25.0%"),
    ]
    assert [cell.strip() for cell in table[3].split("|")[1:-1]] == [
        *("Medium B", "500", "-", "10", "-", "90", "-", "-"),
    ]


def test_nothing_happened() -> None:
    """A job that did nothing has no latency, and is no zero in a median."""
    idle = replace(FULL, figures=Figures(0, 1.0, 0.0, 0.0))
    assert results.middle([idle], "a", "j", 100, "p50_us") is None
    assert results.middle([idle, FULL], "a", "j", 100, "p50_us") == 10.0


def test_json_and_back() -> None:
    """What is written can be read again, for another plot."""
    behind = replace(half(5), zswap_in=3, limit_bytes=50, charged_bytes=49, zswap_bytes=9)
    text = results.as_json([FULL, behind], {"kernel": "x"}, {"media": {"a": "A"}, "jobs": {"j": "J"}})
    assert json.loads(text)["samples"][0]["rate"] == 500
    samples, settings = results.from_json(text)
    assert samples == [FULL, behind]
    assert settings["media"] == {"a": "A"}
    with pytest.raises(UserError, match="no results"):
        results.from_json("{}")


def test_plot(tmp_path: Path) -> None:
    """A picture, also where a figure is missing."""
    results.write_plot(tmp_path / "p.png", [FULL], {"j": "J"}, {"a": "A", "b": "B"}, (100, 50))
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_figures() -> None:
    """From the line of a load program, and from redis-benchmark's table."""
    line = '{"operations": 10, "seconds": 2.5, "p50_us": 1, "p99_us": 3.5}'
    assert figures_of(line, "job") == Figures(10, 2.5, 1.0, 3.5)
    for bad in ("", "[]", '{"operations": 1}'):
        with pytest.raises(UserError, match="job: no figures"):
            figures_of(bad, "job")
    text = '"test","rps","p50_latency_ms","p99_latency_ms"\n"GET","200.00","0.5","1.25"\n'
    assert redis_figures(text, 100) == Figures(100, 0.5, 500.0, 1250.0)
    with pytest.raises(UserError, match="redis-benchmark printed no figures"):
        redis_figures("error\n", 100)


def test_redis_keys_are_those_of_redis_benchmark() -> None:
    """It draws key:000000000000 and so on."""
    head = b"*3\r\n$3\r\nSET\r\n$16\r\nkey:000000000042\r\n$1024\r\nkey:000000000042key:"
    assert set_command(42).startswith(head)
    assert len(set_command(42)) == len(set_command(7))


@pytest.mark.parametrize("text", ["", "x", "101", "100,10", "-1"])
def test_bad_percent(text: str) -> None:
    """One line."""
    with pytest.raises(UserError, match="--percent"):
        parse_percents(text)


def test_percent() -> None:
    """From the largest share down, each once: memory is only ever taken away."""
    assert parse_percents("50,100,75,50") == (100, 75, 50)


def test_media(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """By name; a running device and disks stand in the place of those that would be set up here."""
    monkeypatch.setattr(Zram, "available", staticmethod(lambda: False))
    assert [medium.name for medium in choose_media(None, None, ())] == ["infiniswap", "nbdkit", "floor", "disk", "hdd"]
    assert "no zram" in capsys.readouterr().err
    monkeypatch.setattr(Zram, "available", staticmethod(lambda: True))
    chosen = choose_media(None, "swap0", ["hdd=/dev/vdb", "ssd=/dev/vdc"])
    assert [medium.name for medium in chosen] == ["infiniswap", "hdd", "ssd", "zram"]
    assert [medium.name for medium in choose_media("disk", None, ())] == ["disk"]
    for disk in ("/dev/vdb", "=/dev/vdb", "a b=/dev/vdb", "a="):
        with pytest.raises(UserError, match="--disk"):
            choose_media(None, None, [disk])
    with pytest.raises(UserError, match="no medium 'tape'"):
        choose_media("tape", None, ())


def test_behind_zswap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chosen media are measured behind zswap as well, which is as before afterwards, also when the medium fails."""
    monkeypatch.setattr(BehindZswap, "available", staticmethod(lambda: False))
    with pytest.raises(UserError, match="no zswap"):
        choose_media("disk", None, (), "disk")
    monkeypatch.setattr(BehindZswap, "available", staticmethod(lambda: True))
    monkeypatch.setattr(command, "charges_zswap", lambda: False)
    with pytest.raises(UserError, match="version 1 charge zswap's pages to nobody"):
        choose_media("disk", None, (), "disk")
    monkeypatch.setattr(command, "charges_zswap", lambda: True)
    media = choose_media("disk,hdd", None, (), "disk")
    assert [medium.name for medium in media] == ["disk", "hdd", "zswap-disk"]
    with pytest.raises(UserError, match="no medium 'ssd'"):
        choose_media("disk", None, (), "ssd")
    values = {"enabled": "N", "compressor": "lzo"}
    monkeypatch.setattr(zswap, "parameters", lambda: dict(values))
    monkeypatch.setattr(zswap, "store", values.__setitem__)
    while_it_was_up: list[dict[str, str]] = []

    def start(*_: object) -> None:
        while_it_was_up.append(dict(values))
        raise UserError("no")

    monkeypatch.setattr(media[0], "start", start)
    with pytest.raises(UserError, match="no"), ExitStack() as undo:
        BehindZswap(media[0]).start(None, undo)  # type: ignore[arg-type]
    assert while_it_was_up == [{"enabled": "Y", "compressor": "zstd"}]
    assert values == {"enabled": "N", "compressor": "lzo"}


def test_pages_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that zswap took and passed on later went out once, though the kernel counts it for both."""
    counted = "pgfault 9\npswpin 100\npswpout 250\nzswpin 40\nzswpout 300\nzswpwb 200\n"
    monkeypatch.setattr(Path, "read_text", lambda _: counted)
    assert command.swapped_pages() == (140, 350, 40)
    monkeypatch.setattr(Path, "read_text", lambda _: "pswpin 1\npswpout 2\n")  # a kernel without zswap
    assert command.swapped_pages() == (1, 2, 0)


def test_what_is_no_block_device(tmp_path: Path) -> None:
    """Is not made swap."""
    medium = BlockDevice("x", tmp_path)
    with pytest.raises(UserError, match="is no block device"):
        medium.start(None, None)  # type: ignore[arg-type]


def test_areas() -> None:
    """From /proc/swaps."""
    assert [area.path for area in parse_swaps("Filename Type Size Used Priority\n/dev/sda2 partition 1 0 -2\n")] == [
        "/dev/sda2"
    ]
    assert list(parse_swaps("Filename Type Size Used Priority\n")) == []


def test_commands() -> None:
    """A command's failure is its last line; one that is missing says so."""
    assert run(["echo", "x"]) == "x\n"
    with pytest.raises(UserError, match="failed: second"):
        run(["sh", "-c", "echo first >&2; echo second >&2; exit 3"])
    with pytest.raises(UserError, match="cannot be started"):
        run(["/no/such/command"])
    with pytest.raises(UserError, match="has not ended"):
        run(["sleep", "30"], timeout_s=0.1)


def unified(root: Path, used_bytes: int) -> Path:
    """A folder that looks like a cgroup of version 2 with one group."""
    group = root / "g"
    group.mkdir()
    (root / "cgroup.controllers").write_text("memory\n")
    for name, value in (("memory.max", "max"), ("memory.high", "max"), ("memory.current", str(used_bytes))):
        (group / name).write_text(value)
    return group


def test_cgroup_version_2(tmp_path: Path) -> None:
    """Pages out at the limit, kills only well above; commands run inside from their start."""
    folder = unified(tmp_path, 10 << 20)
    group = Cgroup("g", tmp_path)
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+memory"
    group.limit(10 << 20)
    assert int((folder / "memory.max").read_text()) == (10 << 20) * 9 // 8
    assert group.command(["true"])[-2:] == [str(folder), "true"]
    assert group.zswap_bytes() == 0
    (folder / "memory.zswap.current").write_text("8192\n")
    assert group.zswap_bytes() == 8192
    assert charges_zswap(tmp_path)
    assert not charges_zswap(tmp_path / "g")


def test_cgroup_that_does_not_shrink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line at the deadline."""
    unified(tmp_path, 100 << 20)
    monkeypatch.setattr("scripts.benchmark.swap.cgroup.SHRINK_TIMEOUT_S", 0.1)
    with pytest.raises(UserError, match="100 MiB are still in use where 96 MiB are to be"):
        Cgroup("g", tmp_path).limit(100 * STEP_BYTES // 100)


def test_no_memory_controller(tmp_path: Path) -> None:
    """A host without: one line, nothing left."""
    (tmp_path / "cgroup.controllers").write_text("cpu\n")
    with pytest.raises(UserError, match="has no memory controller") as caught:
        Cgroup("g", tmp_path)
    assert caught.value.code == ExitCode.RESOURCES
    assert not (tmp_path / "g").exists()


def test_a_job_that_fails() -> None:
    """Costs its own figures from there on, and is told."""

    def samples() -> Iterator[Sample]:
        yield FULL
        raise UserError("killed")

    failures: list[str] = []
    assert list(tried(samples(), failures)) == [FULL]
    assert failures == ["killed"]


def test_measure_takes_memory_away_step_by_step() -> None:
    """Full memory first, without a limit; then each share of what was resident."""
    limits: list[int] = []

    class Group:
        def limit(self, limit_bytes: int) -> None:
            limits.append(limit_bytes)

        def used_bytes(self) -> int:
            return 40 + len(limits)

        def zswap_bytes(self) -> int:
            return 4

    class Load:
        name = "j"

        def resident_bytes(self) -> int:
            return 1000

        def measure(self, seconds: float) -> Figures:
            return Figures(int(seconds), seconds, 1.0, 2.0)

    plan = Plan(1, 64 << 20, (100, 75, 50), 4.0, 2.0)
    samples = list(measure(Load(), Group(), plan, 3, "m"))  # type: ignore[arg-type]
    assert limits == [750, 500]
    assert [(s.round, s.medium, s.job, s.percent, s.figures.operations) for s in samples] == [
        (3, "m", "j", percent, 4) for percent in (100, 75, 50)
    ]
    memory = [(s.limit_bytes, s.charged_bytes, s.zswap_bytes) for s in samples]
    assert memory == [(0, 40, 4), (750, 41, 4), (500, 42, 4)]
