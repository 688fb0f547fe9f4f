"""A device that serves swap has its backup written by threads, which may wait for memory in place of the loop."""

from __future__ import annotations

import pytest

from infiniswap.device.config import load_config
from infiniswap.device.serve import chosen_backup_engine


@pytest.mark.parametrize(
    ("said", "locked", "chosen"),
    [("auto", False, "auto"), ("auto", True, "threads"), ("io_uring", True, "io_uring"), ("threads", False, "threads")],
)
def test_chosen(said: str, locked: bool, chosen: str) -> None:
    """Unless somebody has said otherwise."""
    given = {"size": "1GiB", "backup": "/data/vol.img", "backup_engine": said, "lock_memory": locked}
    assert chosen_backup_engine(load_config("vol", given)) == chosen


def test_real_time_by_itself() -> None:
    """It is on unless it is switched off."""
    given = {"size": "1GiB", "backup": "/data/vol.img"}
    assert load_config("vol", given).real_time
    assert not load_config("vol", {**given, "real_time": False}).real_time
