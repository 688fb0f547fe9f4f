"""What a running device goes by: each option's value in force, and where it was stated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from infiniswap.device.config import SECTIONS, Loaded
from infiniswap.shared.layers import files_of, shown


class Settings:
    """The options of one device that serves."""

    def __init__(self, loaded: Loaded, file: Path | None = None) -> None:
        """file: the configuration file that it was started with."""
        self._loaded = loaded
        self._file = file

    @property
    def file(self) -> str | None:
        """The configuration file that it was started with."""
        return None if self._file is None else str(self._file.absolute())

    def describe(self) -> dict[str, Any]:
        """As GET /v1/config answers."""
        return {
            "name": self._loaded.config.name,
            "files": [] if self._file is None else [str(path.absolute()) for path in files_of(self._file)],
            "options": shown(self._loaded.config, self._loaded.stated, SECTIONS),
        }
