"""A device as several services: what each is asked to be, and what they tell as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from infiniswap.cli.device_trace import reached
from infiniswap.device import shards_sums as sums
from infiniswap.device.backup import LOG_FACTS
from infiniswap.device.config import DeviceConfig, load_config
from infiniswap.device.last_start import Sources
from infiniswap.device.options import OPTIONS
from infiniswap.device.shards import Record, check_number, read_record, shard_arguments
from infiniswap.device.shards_metrics import merged, of_parent
from infiniswap.shared.errors import UserError
from infiniswap.shared.shard_names import number_of, shard_name, whole_of
from infiniswap.shared.slab_choice import SlabChoice

GIVEN = {"size": "64MiB", "slab_size": "1MiB", "backup": "/b/vol.img", "shards": "4"}


@click.command()
@click.argument("name")
@click.option("--config")
@OPTIONS.on(OPTIONS.names)
def as_served(name: str, config: str | None, **given: Any) -> DeviceConfig:
    """Stands in for 'device serve'."""
    del config
    return load_config(name, given)


def shard(number: int, *, first: bool = True, **more: object) -> DeviceConfig:
    """The configuration that a shard's command line makes."""
    given = {**GIVEN, **more}
    arguments = shard_arguments(load_config("vol", given), Sources("vol", None, given), number, first=first)
    found = as_served.main(arguments, standalone_mode=False)
    assert isinstance(found, DeviceConfig)
    return found


def test_each_has_its_part() -> None:
    """Size and pending limit are divided, files and sockets have names of their own, ports follow each other."""
    found = shard(
        3,
        tcp=["127.0.0.1:10809", "127.0.0.1:0"],
        web="127.0.0.1:9000",
        metrics_listen="127.0.0.1:9100",
        pending_limit="32MiB",
        socket="/s/vol.sock",
        peers=["one", "two:7000"],
        sparse=True,
        real_time=False,
        encrypt=False,
    )
    assert (found.name, found.shards, found.size_bytes) == ("vol~3", 1, 16 << 20)
    assert (found.backup, found.socket_path) == (Path("/b/vol.img~3"), Path("/s/vol.sock~3"))
    assert found.pending_limit_bytes == 8 << 20
    assert [str(each) for each in (*found.tcp, found.web)] == ["127.0.0.1:10812", "127.0.0.1:0", "127.0.0.1:9003"]
    assert found.metrics_listen is None, "the parent has that, for all"
    assert (found.sparse, found.real_time, found.encrypt) == (True, False, False)
    assert [str(peer) for peer in found.peers] == ["one:7401", "two:7000"]
    assert shard(0).socket_path.name == "vol~0.sock"


def test_once_is_once() -> None:
    """What is meant for one start is not said again to a shard that was killed: its newer pages would be dropped."""
    assert shard(1, accept_backup=True).accept_backup
    assert not shard(1, first=False, accept_backup=True).accept_backup


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"size": "66MiB"}, "64MiB or 68MiB does"),
        ({"pending_limit": "2MiB"}, "leaves each of 4 shards less than 1MiB"),
        ({"shards": "0"}, "between 1 and 16"),
    ],
)
def test_what_cannot_be_divided(more: dict[str, str], words: str) -> None:
    """It is refused with what would do."""
    with pytest.raises(UserError, match=words):
        load_config("vol", {**GIVEN, **more})


def test_file_describes_the_whole(tmp_path: Path) -> None:
    """A shard reads the file of its device, and of no other."""
    file = tmp_path / "vol.toml"
    file.write_text('name = "vol"\nsize = "64MiB"\nbackup = "/b"\npeers = ["one"]\n')
    found = load_config("vol~1", {"size": "4MiB", "backup": "/b~1"}, file)
    assert (found.name, found.size_bytes, len(found.peers)) == ("vol~1", 4 << 20, 1)
    with pytest.raises(UserError, match="not 'other~1'"):
        load_config("other~1", {}, file)


def test_record(tmp_path: Path) -> None:
    """It is read as it was written; damage is said and never taken for a device without shards."""
    assert read_record(tmp_path) is None
    Record(3, "/b").write(tmp_path)
    assert read_record(tmp_path) == Record(3, "/b")
    for damaged in ('{"shards": 1, "backup": "x"}', '{"shards": 2, "backup": null}', "", "[]", "[" * 3000):
        (tmp_path / "shards.json").write_text(damaged)
        with pytest.raises(UserError, match="damaged"):
            read_record(tmp_path)


def test_one_exposition() -> None:
    """Each family once, with the samples of all; what only one has is there, too."""
    one = '# HELP a Words.\n# TYPE a gauge\na{device="v~0"} 1.0\n# HELP b B.\n# TYPE b counter\nb_total 2.0\n'
    two = '# HELP c C.\n# TYPE c gauge\nc 5.0\n# HELP a Words.\n# TYPE a gauge\na{device="v~1"} 3.0\n'
    assert merged([one, "", two]).splitlines() == [
        "# HELP a Words.",
        "# TYPE a gauge",
        'a{device="v~0"} 1.0',
        'a{device="v~1"} 3.0',
        "# HELP b B.",
        "# TYPE b counter",
        "b_total 2.0",
        "# HELP c C.",
        "# TYPE c gauge",
        "c 5.0",
    ]
    told = of_parent("v", [("v~0", True, 0), ("v~1", False, 3)])
    assert 'infiniswap_shard_up{device="v",shard="v~1"} 0.0' in told
    assert 'infiniswap_shard_restarts_total{device="v",shard="v~1"} 3.0' in told


def test_traces_are_of_all() -> None:
    """Requests of all shards in the order of their arrival, their pages numbered through."""
    row = {"time_s": 5.0, "page": 1, "offset": 4096}
    parts = [
        ("v~0", 0, {"requests": [row, {**row, "time_s": 9.0}]}),
        ("v~1", 1 << 20, {"requests": [{**row, "time_s": 7.0}]}),
    ]
    found = sums.traces(parts, None)
    assert [(each["shard"], each["page"], each["offset"]) for each in found] == [
        ("v~0", 1, 4096),
        ("v~1", 257, (1 << 20) + 4096),
        ("v~0", 1, 4096),
    ]
    assert [each["time_s"] for each in sums.traces(parts, 2)] == [7.0, 9.0]
    assert sums.traces(parts, 0) == []


def test_traces_of_an_earlier_version() -> None:
    """A shard or a device that an upgrade has left running tells no `next`: the highest number counts."""
    rows = [{"number": 7}, {"number": 9}]
    for answer, before, expected in (
        ({"requests": rows, "next": 12}, 3, 12),
        ({"requests": rows}, 3, 9),
        ({"requests": []}, 3, 3),
    ):
        assert sums.traced(answer, before) == expected
        assert reached(answer, before) == expected


def test_names() -> None:
    """A shard's name leads to its device and its number."""
    assert (shard_name("a-b", 12), whole_of("a-b~12"), number_of("a-b~12"), number_of("a")) == ("a-b~12", "a-b", 12, 0)


def test_sums() -> None:
    """Numbers add up at every depth, a key that one lacks counts as nothing, words are the first one's."""
    assert sums.add([{"a": 1, "b": {"c": 2.5}, "w": "x"}, {"a": 2, "b": {"c": 1, "d": 4}, "w": "y"}]) == {
        "a": 3,
        "b": {"c": 3.5, "d": 4},
        "w": "x",
    }


@pytest.mark.parametrize(("counted", "expected"), [((3, 4), 7), ((None, None), None)])
def test_a_log_is_counted_in_all_shards(counted: tuple[int | None, int | None], expected: int | None) -> None:
    """A status tells of the logs together, a bad page of the second one, too; of images nothing is told."""
    counts = ("size_bytes", "connections", "mapped_slabs", "slabs", "backup_bytes", "peers")
    words = {"tcp": [], "uri": "", "backup_state": "good", "backup_problems": []}
    parts = [{**dict.fromkeys(counts, 1), **words, **dict.fromkeys(LOG_FACTS, count)} for count in counted]
    found = sums.status(parts, {})
    assert {name: found[name] for name in LOG_FACTS} == dict.fromkeys(LOG_FACTS, expected)


def test_latencies_are_of_all() -> None:
    """Percentiles come from both histograms together, not from the mean of two percentiles."""
    buckets = sums.merged([[[0, 1000, 99]], [[0, 1000, 99], [1000000, 2000000, 2]]])
    assert buckets == [[0, 1000, 198], [1000000, 2000000, 2]]
    found = sums.latency_us(buckets)
    assert (found["count"], found["max"]) == (200, 2000.0)
    assert found["p50"] < 1 < 1000 <= found["p999"]
    assert sums.latency_us([]) == {"count": 0, "p50": None, "p90": None, "p99": None, "p999": None, "max": None}


def peer_row(address: str, state: str, count: int) -> dict[str, Any]:
    """A row of GET /v1/peers."""
    sums_of = dict.fromkeys((*sums._PEER_SUMS, *sums._PEER_SUMS_FLOAT), count)
    return {"peer": address, "state": state, **sums_of, "last_error": None, "rdma_error": None, "leaving": None}


def test_peers_are_as_bad_as_the_worst() -> None:
    """One row an address; a peer that one shard has lost is not up."""
    rows = sums.peers([[peer_row("a", "up", 1), peer_row("b", "up", 1)], [peer_row("a", "down", 2)]])
    assert [(row["peer"], row["state"], row["reads"]) for row in rows] == [("a", "down", 3), ("b", "up", 1)]


def test_slabs_are_numbered_through() -> None:
    """Those of a shard that does not answer keep their numbers."""
    row = {"index": 1, "state": "mapped", "peer": "a", "activity": 1.0}
    parts: list[list[dict[str, Any]]] = [[], [row], [{**row, "activity": 5.0}]]
    found = sums.slabs(parts, [4, 4, 4], SlabChoice(sort="activity"))
    assert [each["index"] for each in found] == [9, 5]


def test_scrub_goes_on_while_one_does() -> None:
    """Its pages are numbered through."""
    part = {"state": "done", "seconds": 1.0, "size_bytes": 8192, "differences": [{"page": 1}], "lost_pages": 1}
    found = sums.scrub([part, {**part, "state": "running", "seconds": 2.0}])
    assert (found["state"], found["seconds"], found["lost_pages"]) == ("running", 2.0, 2)
    assert [each["page"] for each in found["differences"]] == [1, 3]


@pytest.mark.parametrize(
    ("there", "words"),
    [
        ([], None),
        ([0, 1, 2, 3], None),
        ([0, 1], r"vol.img~0 is there, and vol.img~2, vol.img~3 not"),
        ([0, 1, 2, 3, 4], r"vol.img~4 is there, and of 4 shards none has it"),
    ],
)
def test_backups_without_a_record(tmp_path: Path, there: list[int], words: str | None) -> None:
    """After a boot only the backups tell how many shards there were: some of them, or one more, are another device."""
    for number in there:
        (tmp_path / f"vol.img~{number}").touch()
    given = {**GIVEN, "backup": str(tmp_path / "vol.img"), "state_dir": str(tmp_path / "state")}
    config = load_config("vol", given)
    if words is None:
        check_number(config)
        return
    with pytest.raises(UserError, match=words):
        check_number(config)
