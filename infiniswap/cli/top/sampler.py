"""Asking devices for snapshots, several at a time, and never longer than one may wait for a picture."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from infiniswap.cli.top.rates import DeviceRates, between
from infiniswap.shared.device_client import DeviceClient
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.paths import device_names

ANSWER_TIMEOUT_S = 2.0
AT_ONCE = 16  # devices asked at the same time
DEVICES_MAX = 256  # more than a host runs; the rest is left out


class Sampler:
    """Remembers the last snapshot of each device, and makes rates of it and the next one."""

    def __init__(self, names: Sequence[str], runtime_dir: Path, cells: int) -> None:
        """names: devices, none for all that there are at each look. cells: of the heat picture at most."""
        self._names = tuple(dict.fromkeys(names))
        self._runtime_dir = runtime_dir
        self._cells = cells
        self._last: dict[str, Any] = {}
        self._errors: dict[str, UserError] = {}  # of the last look

    def names(self) -> Sequence[str]:
        """Devices that the next look asks."""
        return (self._names or device_names(self._runtime_dir))[:DEVICES_MAX]

    def first(self) -> list[DeviceRates]:
        """The look from which rates are counted. UserError: a device that was named cannot be asked."""
        rows = self.look()
        for name in self._names:
            if name in self._errors:
                raise self._errors[name]
        return rows

    def look(self) -> list[DeviceRates]:
        """Each device now, with its rates since the look before. A device that does not answer says why."""
        names = self.names()
        self._errors = {}
        if not names:
            return []
        with ThreadPoolExecutor(min(AT_ONCE, len(names))) as pool:
            found = list(pool.map(self._rates, names))
        self._last = {name: snapshot for name, (snapshot, _) in zip(names, found, strict=True) if snapshot is not None}
        return [rates for _, rates in found]

    def _rates(self, name: str) -> tuple[Any, DeviceRates]:
        try:
            snapshot = self._ask(name)
        except UserError as error:
            state = "dead" if error.code == ExitCode.NOT_FOUND else "silent"
            self._errors[name] = error
            return None, DeviceRates(name, state, why=str(error))
        return snapshot, between(self._last.get(name), snapshot)

    def _ask(self, name: str) -> Any:
        with DeviceClient(name, self._runtime_dir, ANSWER_TIMEOUT_S) as control:
            try:
                return control.get(f"/v1/snapshot?cells={self._cells}")
            except UserError as error:
                if "nothing at this path" in str(error):
                    raise UserError(f"device '{name}' is of an older version: restart it first", error.code) from None
                raise
