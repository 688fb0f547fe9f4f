"""CPU seconds and memory as scripts/bench reads them from /proc, whatever a program is called."""

from __future__ import annotations

import os
import subprocess
import time

import pytest

from scripts.benchmark.accounting import (
    TICKS_PER_S,
    busy_seconds,
    busy_seconds_of,
    cpu_seconds,
    peak_rss_bytes,
    peak_rss_bytes_of,
)


@pytest.mark.parametrize("text", ["", "4242 (fio) S 1 2 3", "nonsense"])
def test_other_text_is_refused(text: str) -> None:
    """What is no stat is an error, not a zero."""
    with pytest.raises(ValueError, match="stat"):
        busy_seconds_of(text)
    with pytest.raises(ValueError, match="VmHWM"):
        peak_rss_bytes_of(text)


def test_own_time_is_what_the_system_says() -> None:
    """For a process that works it is the kernel's other account of it; two pids add up; who has ended has none."""
    end_s = time.process_time() + 0.1
    while time.process_time() < end_s:
        pass
    before_s = time.process_time()
    mine = cpu_seconds([os.getpid()])
    assert before_s <= mine <= time.process_time()
    assert cpu_seconds([os.getpid(), os.getpid()]) == pytest.approx(2 * mine, abs=0.1)
    assert cpu_seconds([]) == 0
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    with pytest.raises(OSError):
        cpu_seconds([ended.pid])


def test_machine_time() -> None:
    """Idle and waiting for disks is not busy; what the hypervisor took is."""
    ticks = [part * TICKS_PER_S for part in (1, 2, 3, 40, 50, 6, 7, 8)]
    assert busy_seconds_of(f"cpu  {' '.join(map(str, ticks))} 0 0\ncpu0 1 1\n") == (27.0, 117.0)
    busy_s, all_s = busy_seconds()
    assert 0 < busy_s <= all_s


def test_peak_memory() -> None:
    """The high-water mark, not the present size; in bytes."""
    assert peak_rss_bytes_of("Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n") == 2 << 20
    assert peak_rss_bytes(os.getpid()) > 1 << 20
