"""How the tests are run where they are: the same tests pass on a host over TCP and in an emulated machine over RDMA."""

from __future__ import annotations

import os

# How much slower than a usual machine this one is: deadlines are multiplied by it.
PACE = float(os.environ.get("INFINISWAP_TEST_PACE", "1"))
# What share of its usual load a test puts on: an emulated machine proves the same with fewer bytes, in fewer minutes.
LOAD = float(os.environ.get("INFINISWAP_TEST_LOAD", "1"))
# How devices reach their daemons: auto, tcp or rdma (then the daemons must have it, too).
TRANSPORT = os.environ.get("INFINISWAP_TEST_TRANSPORT", "auto")


def paced(seconds: float) -> float:
    """A deadline for this machine."""
    return seconds * PACE


def lighter(amount: int, *, least: int = 1) -> int:
    """How much of something a test does on this machine: amount where nothing else is asked for, never below least."""
    return max(least, round(amount * LOAD))


def daemon_options() -> tuple[str, ...]:
    """Options of every daemon; a test's own come behind them, and win."""
    # A test that ends a daemon wants it gone; what is moved away before is a matter of tests of its own.
    quick = ("--stop-timeout-s", "0")
    slow = ("--lease-ttl-s", str(60 * PACE)) if PACE > 1 else ()
    return (*quick, *slow, *(("--rdma", "required") if TRANSPORT == "rdma" else ()))


def device_options() -> tuple[str, ...]:
    """Options of every device."""
    return () if TRANSPORT == "auto" else ("--transport", TRANSPORT)
