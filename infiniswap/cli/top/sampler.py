"""Asking devices for snapshots, several at a time, and never longer than one may wait for a picture."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from infiniswap.cli.top.rates import DeviceRates, between
from infiniswap.policy.health import of_missing_device
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

    def first(self) -> list[DeviceRates]:
        """The look from which rates are counted. UserError: a device that was named cannot be asked."""
        rows = self.look()
        for name in self._names:
            if name in self._errors:
                raise self._errors[name]
        return rows

    def look(self) -> list[DeviceRates]:
        """Each device now, with its rates since the look before. A device that does not answer says why."""
        found = ask_all(self._names, self._runtime_dir, self._cells)
        self._errors = {name: error for name, _, error in found if error is not None}
        rows = []
        for name, snapshot, error in found:
            if snapshot is not None:
                rows.append(between(self._last.get(name), snapshot))
            else:
                dead = error is not None and is_dead(error)
                finding = of_missing_device(name, dead=dead, why=str(error))
                rows.append(DeviceRates(name, "dead" if dead else "silent", findings=(finding,), why=str(error)))
        self._last = {name: snapshot for name, snapshot, _ in found if snapshot is not None}
        return rows


def is_dead(error: UserError) -> bool:
    """Whether what could not be asked has been killed: the device, or all of its shards, of which the parent tells."""
    return error.code == ExitCode.NOT_FOUND or "none of its shards serves" in str(error)


def ask(name: str, runtime_dir: Path, cells: int) -> Any:
    """A device's snapshot; UserError. cells: of the heat picture at most."""
    with DeviceClient(name, runtime_dir, ANSWER_TIMEOUT_S) as control:
        try:
            return control.get(f"/v1/snapshot?cells={cells}")
        except UserError as error:
            if "nothing at this path" in str(error):
                raise UserError(f"device '{name}' is of an older version: restart it first", error.code) from None
            raise


def ask_all(names: Sequence[str], runtime_dir: Path, cells: int) -> list[tuple[str, Any, UserError | None]]:
    """Name, snapshot or None, and why it is None, of the devices named or, without names, of all; at the same time."""
    wanted = (tuple(dict.fromkeys(names)) or device_names(runtime_dir))[:DEVICES_MAX]

    def one(name: str) -> tuple[str, Any, UserError | None]:
        try:
            return name, ask(name, runtime_dir, cells), None
        except UserError as error:
            return name, None, error

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(one, wanted))
