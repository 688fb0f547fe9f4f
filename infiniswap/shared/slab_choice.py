"""Which slabs somebody wants to see: what the command asks, and what the device's GET /v1/slabs takes as its query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlencode

STATES = ("mapped", "mapping", "draining", "unmapped")
# By the name of the column, the key in a row; all but the index begin with the largest.
SORTS = {
    "index": "index",
    "activity": "activity",
    "remote": "remote_pages",
    "backup": "backup_pages",
    "pending": "pending_pages",
    "pageins": "page_ins",
    "pageouts": "page_outs",
}
TOP_MAX = 1 << 20  # slabs of the largest device
_PEER_CHARACTERS_MAX = 300


@dataclass(frozen=True, slots=True)
class SlabChoice:
    """state, peer: None for any. peer: HOST:PORT, or HOST for whatever port. top: so many at most, None for all."""

    state: str | None = None
    peer: str | None = None
    sort: str = "index"
    top: int | None = None

    def as_query(self) -> str:
        """For the end of the path; "" when all are wanted in order."""
        wanted = {"state": self.state, "peer": self.peer, "sort": self.sort, "top": self.top}
        given = {key: value for key, value in wanted.items() if value is not None and (key, value) != ("sort", "index")}
        return "?" + urlencode(given) if given else ""

    @classmethod
    def parse(cls, query: Mapping[str, str]) -> Self:
        """Out of a query that a stranger sent; ValueError with a sentence for what cannot be meant."""
        state, peer, sort, top = query.get("state"), query.get("peer"), query.get("sort", "index"), query.get("top")
        if state is not None and state not in STATES:
            raise ValueError(f"state must be one of {', '.join(STATES)}")
        if sort not in SORTS:
            raise ValueError(f"sort must be one of {', '.join(SORTS)}")
        if top is not None and not (top.isascii() and top.isdigit() and len(top) < 9 and 1 <= int(top) <= TOP_MAX):
            raise ValueError(f"top must be a whole number from 1 to {TOP_MAX}")
        if peer is not None and len(peer) > _PEER_CHARACTERS_MAX:
            raise ValueError("peer must be the address of a memory daemon")
        return cls(state, peer, sort, None if top is None else int(top))

    def is_peer(self, address: str | None) -> bool:
        """Whether the memory daemon at address, None for nobody, is one that is meant."""
        return self.peer is None or (address is not None and self.peer in (address, address.rpartition(":")[0]))

    def choose(self, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Of rows as the device answers; choosing twice changes nothing, so a device that answers with all will do."""
        kept = [row for row in rows if self.state in (None, row["state"]) and self.is_peer(row["peer"])]
        sign = 1 if self.sort == "index" else -1
        kept.sort(key=lambda row: (sign * row[SORTS[self.sort]], row["index"]))
        return kept[: self.top]
