"""SIGHUP: the daemon reads its files again, does what can be done while it lends, and says what needs a restart."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from infiniswap.daemon.config import DaemonConfig, Loaded, load
from infiniswap.daemon.options import OPTIONS
from infiniswap.shared import logs
from infiniswap.shared.errors import UserError
from infiniswap.shared.output import say

log = logging.getLogger(__name__)


class Adjustable(Protocol):
    """What of a running daemon can be adjusted (service.MemoryService)."""

    def adjust(self, config: DaemonConfig) -> None:
        """Go by memory, headroom and quota of config from now on; UserError: that cannot be, and nothing changes."""


class Settings:
    """What the daemon goes by."""

    def __init__(self, loaded: Loaded, given: Mapping[str, object], file: Path | None) -> None:
        """given: the command line, which counts more than the file."""
        self.config = loaded.config
        self._given = dict(given)
        self._file = file

    def reload(self, daemon: Adjustable) -> None:
        """Read the files again. Whatever is wrong is logged, and then nothing has changed."""
        try:
            loaded = load(self._given, self._file)
            changed = {option.name: _both(option.field, self.config, loaded.config) for option in OPTIONS}
            changed = {name: both for name, both in changed.items() if both[0] != both[1]}
            live = {OPTIONS.find(name).field: both[1] for name, both in changed.items() if OPTIONS.find(name).live}
            config = replace(self.config, **live)
            daemon.adjust(config)
        except UserError as error:
            log.error("the files are not read again, nothing has changed: %s", error)
            return
        if config.log_level != self.config.log_level:
            logs.set_level(config.log_level)
        self.config = config
        for name, (before, after) in changed.items():
            option = OPTIONS.find(name)
            new = option.as_written(after)
            if option.live:
                say(f"infiniswapd: {name} is {new} now, was {option.as_written(before)}")
            else:
                where = loaded.stated[name].where if name in loaded.stated else "default"
                log.warning("%s is %s by %s: that needs a restart", name, new, where)
        if not changed:
            say("infiniswapd: the files are read again: nothing has changed")


def _both(field: str, before: DaemonConfig, after: DaemonConfig) -> tuple[Any, Any]:
    return getattr(before, field), getattr(after, field)
