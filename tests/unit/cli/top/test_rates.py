"""Rates come from two snapshots of one process, percentiles from the difference of their histograms."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from infiniswap.cli.top.rates import Latency, between, percentile_us
from tests.support.snapshots import peer, snapshot


def test_rates() -> None:
    """Requests, bytes, shares and failures are those of the interval, not those since the start."""
    before = snapshot(
        reads={"remote": 1000, "backup": 500}, counters={"read_requests": 900}, failures={"peers_lost": 3}
    )
    after = snapshot(
        uptime_s=12.0,
        reads={"remote": 1300, "backup": 600},
        writes={"remote": 50},
        counters={"read_requests": 1000, "write_requests": 20},
        failures={"peers_lost": 4},
    )
    rates = between(before, after)
    assert (rates.seconds, rates.in_iops, rates.out_iops) == (2.0, 50.0, 10.0)
    assert (rates.in_bytes_s, rates.out_bytes_s) == (200 * 4096, 25 * 4096)
    assert rates.hits == {"remote": 0.75, "pending": 0, "backup": 0.25, "zero": 0}
    assert rates.hit_ratio == 0.75
    assert (rates.faults, rates.faults_total) == (1, 4)


@pytest.mark.parametrize("before", [None, snapshot(pid=6), snapshot(uptime_s=11.0)])
def test_no_rates_without_an_earlier_look_at_the_same_process(before: dict[str, object] | None) -> None:
    """The first look, and the first one after a restart, tell what stands, and no rates that nobody measured."""
    rates = between(before, snapshot(reads={"remote": 7}, pending_bytes=4096, counters={"read_requests": 7}))
    assert (rates.seconds, rates.in_iops, rates.in_bytes_s, rates.hits, rates.faults) == (None, None, None, {}, None)
    assert rates.reads == Latency()
    assert rates.pending_bytes == 4096


def test_no_rates_where_a_shard_is_another_process() -> None:
    """One that is back, or answers again, brings all that it ever counted: that is no rate."""

    def looked(uptime_s: float, reads: int, *pids: int | None) -> dict[str, Any]:
        shards = [
            {"name": f"vol~{number}", "pid": pid, "state": "serving", "why": ""} for number, pid in enumerate(pids)
        ]
        return snapshot(uptime_s=uptime_s, reads={"remote": reads}, shards=shards)

    before = looked(10.0, 500, 8, None)
    assert between(before, looked(11.0, 9000, 8, 9)).in_bytes_s is None
    assert between(before, looked(11.0, 501, 8, None)).in_bytes_s == 4096


def test_percentiles_of_the_interval() -> None:
    """A slow past does not colour a quick interval; sources that readers waited for count together."""
    slow = {"remote": [[1_000_000, 2_000_000, 1000]]}
    now = {"remote": [[10_000, 20_000, 90], [1_000_000, 2_000_000, 1000]], "backup": [[100_000, 200_000, 10]]}
    rates = between(snapshot(histograms=slow), snapshot(uptime_s=11.0, histograms=now))
    assert rates.latency["remote"].count == 90
    assert rates.reads.count == 100
    assert rates.reads.p50_us == pytest.approx(10 + 10 * 50 / 90, abs=0.001)
    assert rates.reads.p99_us == pytest.approx(100 + 100 * 9 / 10)
    assert rates.latency["flush"] == Latency()


def test_percentile_against_the_values_themselves() -> None:
    """Within its bucket, whatever the values: compared with sorted values."""
    rng = random.Random(1)
    for _ in range(50):
        values = [rng.randrange(1, 1 << rng.randrange(1, 30)) for _ in range(rng.randrange(1, 200))]
        buckets = Counter((1 << v.bit_length() - 1, 1 << v.bit_length()) for v in values)
        for quantile in (0.0, 0.5, 0.99, 1.0):
            exact = sorted(values)[max(0, -(-len(values) * quantile // 1).__int__() - 1)]
            found = percentile_us(buckets, quantile)
            assert found is not None
            low, high = 1 << exact.bit_length() - 1, 1 << exact.bit_length()
            assert low / 1000 <= found + 0.001
            assert found <= high / 1000 + 0.001
    assert percentile_us({}, 0.5) is None


def test_peers() -> None:
    """Share of what is mapped, page-ins' mean time and bytes of the interval; a peer that is new has no rates."""
    old = peer(latency_total_us=1e6, latency_count=10, bytes_in=100, failures=5)
    new = peer(latency_total_us=1e6 + 500, latency_count=20, bytes_in=300, failures=6, slabs=3)
    rates = between(snapshot(peers=[old]), snapshot(uptime_s=12.0, peers=[new, peer("10.0.0.6:7401", slabs=1)])).peers
    assert (rates[0].share, rates[0].rtt_us, rates[0].in_bytes_s, rates[0].faults) == (0.75, 50.0, 100.0, 1)
    assert (rates[1].share, rates[1].rtt_us, rates[1].in_bytes_s, rates[1].faults) == (0.25, None, None, None)
