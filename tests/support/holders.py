"""The process that keeps a daemon's memory, once no daemon is there any more."""

from __future__ import annotations

from pathlib import Path

from infiniswap.daemon.keeper import HolderKeeper
from tests.support.waiting import wait_for


def end_holder(path: Path) -> None:
    """Have the holder with that socket let go, and wait for its end; nothing to do when there is none."""
    keeper = HolderKeeper(path, linger_s=0.0)
    kept = keeper.take()
    if kept is not None:
        kept.close()
    keeper.forget()
    wait_for(lambda: not path.exists(), what="the holder's end")
