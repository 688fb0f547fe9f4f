"""What a running device goes by: each option's value in force, where it was stated, and how that changes.

Decides, and carries nothing out: changes.py does, and tells what came of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from infiniswap.device.config import SECTIONS, DeviceConfig, Loaded, load
from infiniswap.device.last_start import Described, Sources, as_written, by_hand, peers_of, settle
from infiniswap.device.options import OPTIONS
from infiniswap.device.remembered import Change, Remembered
from infiniswap.shared.address import HostPort
from infiniswap.shared.errors import UserError
from infiniswap.shared.layers import Source, Stated, files_of, shown


@dataclass(frozen=True, slots=True)
class Difference:
    """An option whose value is another one now, as it could be written in a file. where: who says so."""

    option: str
    before: Any
    after: Any
    where: str
    live: bool  # it can be changed while the device serves


class Settings:
    """The options of one device that serves."""

    def __init__(self, described: Described) -> None:
        """described: as it was started."""
        self._described = described
        self.in_force = described.loaded.config  # beside what waits for the next start
        self.sealed: bool | None = None  # what was made of encrypt, where nobody says anything

    @classmethod
    def of(cls, config: DeviceConfig) -> Settings:
        """Of a configuration that nobody tells the origin of."""
        return cls(Described(Loaded(config, {}), Sources(config.name), Remembered(), config.peers))

    @property
    def file(self) -> str | None:
        """The configuration file that it was started with."""
        return self._described.remembered.file

    @property
    def remembered(self) -> Remembered:
        """What the next start is to know."""
        return self._described.remembered

    @property
    def named(self) -> tuple[HostPort, ...]:
        """Peers that files and command line name, or that were added by hand, without those removed by hand."""
        return self._described.loaded.config.peers

    def describe(self) -> dict[str, Any]:
        """As GET /v1/config answers."""
        file = self._described.sources.file
        rows = shown(self.in_force, self._described.loaded.stated, SECTIONS)
        waiting = {each.option: each for each in self.differences(self._described)}
        for row in rows:
            if (later := waiting.get(row["option"])) is not None:
                row["after_restart"] = later.after
                row["where"] = f"the last start; {later.after} after a restart, by {later.where}"
            if row["option"] == "encrypt" and row["value"] is None:
                row["value"] = self.sealed
            if row["option"] == "peers":
                row["where"] += "".join(self._by_hand())
        return {
            "name": self.in_force.name,
            "files": [] if file is None else [str(path.absolute()) for path in files_of(file)],
            "options": rows,
        }

    def _by_hand(self) -> list[str]:
        remembered = self._described.remembered
        lists = (("added", remembered.added), ("removed", remembered.removed), ("discovered", remembered.discovered))
        return [f", {word} {','.join(map(str, addresses))}" for word, addresses in lists if addresses]

    def with_value(self, name: str, value: object) -> Described:
        """With an option set to a value; None: as files and command line have it. UserError."""
        option = OPTIONS.find(name)
        if option.name == "peers":
            raise UserError("peers change by 'infiniswap peer add' and 'infiniswap peer remove'")
        if not option.live:
            live = ", ".join(each.name for each in OPTIONS if each.live and each.name != "peers")
            raise UserError(f"{option.name} cannot be changed while the device serves; these can: {live}")
        sources, remembered = self._described.sources, self._described.remembered
        changed = {key: each for key, each in remembered.changed.items() if key != option.name}
        if value is not None:
            base = load(sources.name, sources.given, sources.file, last=sources.last)
            below = option.as_written(getattr(base.config, option.field))
            changed[option.name] = Change(value, below)
        # Checked as a whole, for settle() would rather drop what does not fit.
        stated = {key: Stated(each.value, Source.RUN_TIME) for key, each in changed.items()}
        load(sources.name, sources.given, sources.file, last=sources.last, changed=stated)
        return settle(sources, replace(remembered, changed=changed))

    def read_again(self) -> Described:
        """As the files are now. UserError: a mistake in them."""
        return settle(self._described.sources, self._described.remembered)

    def with_peer(self, address: HostPort, *, wanted: bool) -> Described:
        """With a peer added or removed by hand."""
        remembered = self._described.remembered
        added = tuple(each for each in remembered.added if each != address)
        removed = tuple(each for each in remembered.removed if each != address)
        if wanted:
            added = (*added, address)
        else:
            removed = (*removed, address)
        return self._settled(replace(remembered, added=added, removed=removed))

    def with_discovered(self, discovered: tuple[HostPort, ...]) -> Described:
        """With what discovery names now."""
        return self._settled(replace(self._described.remembered, discovered=discovered))

    def _settled(self, remembered: Remembered) -> Described:
        """With other peers and nothing else: the files are not read again."""
        described = self._described
        remembered = by_hand(described.named, remembered)
        config = replace(described.loaded.config, peers=peers_of(described.named, remembered))
        return replace(described, loaded=Loaded(config, described.loaded.stated), remembered=remembered)

    def differences(self, described: Described) -> list[Difference]:
        """What is another value in described than what is in force, peers excepted."""
        before, after = as_written(self.in_force), as_written(described.loaded.config)
        stated = described.loaded.stated
        return [
            Difference(
                option.name,
                before[option.name],
                after[option.name],
                stated[option.name].where if option.name in stated else "default",
                option.live,
            )
            for option in OPTIONS
            if option.name != "peers" and before[option.name] != after[option.name]
        ]

    def adopt(self, described: Described) -> None:
        """Go by described from now on; what cannot be changed while the device serves waits for its next start."""
        self._described = described
        after = described.loaded.config
        live = {option.field: getattr(after, option.field) for option in OPTIONS if option.live}
        self.in_force = replace(self.in_force, **{**live, "peers": after.peers})
