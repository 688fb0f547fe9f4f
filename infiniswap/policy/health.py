"""What is the matter, as codes with stable names: the same for the commands, the alert rules and the web page.

Pure: plain snapshots in (a device's GET /v1/snapshot, a daemon's GET /v1/stats as DonorFacts), findings out. What each
code means, and what to do, stands in docs/operate.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from infiniswap.policy.headroom import PRESSURE_PERCENT_HIGH

LAGGING_SHARE = 0.8  # of the pending limit: soon writers wait for the disk
PAGE_BYTES = 4096

CODES = {
    "DEVICE_DEAD": "a device was killed and not started again",
    "DEVICE_SILENT": "a device does not answer",
    "PEER_DOWN": "a device cannot reach a peer, or has lost it",
    "PEER_SLOW": "a peer answers too late and is left alone for a while",
    "NO_PEERS": "a device has no peer at all: everything goes to the backup",
    "NO_ROOM": "no peer has memory for another slab, and there are slabs without",
    "BACKUP_LAGGING": "so much waits for the backup that writers wait for it, too, or soon will",
    "BACKUP_FAILING": "the backup reports errors, or is not where it was",
    "UNPROTECTED_PAGES": "pages that are in peers' memory alone, or may not be on the backup",
    "LOST_PAGES": "pages whose last copy is gone: they read as an error until they are written",
    "PAGES_CHANGED": "pages came back from a peer changed, and were read from elsewhere",
    "CONNECTIONS_DEAD": "the kernel has given up connections to a device",
    "ENGINE_BROKEN": "the data path's own accounts contradict each other: a bug",
    "DONOR_DOWN": "a memory daemon does not answer",
    "DONOR_PRESSURE": "a donor's host is short of memory and takes back what it lent",
    "DONOR_CORDONED": "a donor lends nothing new, or is being drained",
}


class Severity(IntEnum):
    """How bad; also the exit code of infiniswap status."""

    OK = 0
    WARNING = 1  # works on, with less speed or less protection
    ERROR = 2  # data is lost or in danger, or something does not work

    @property
    def word(self) -> str:
        """In lower case."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is the matter. device, peer: whom it is about, as far as there is one."""

    code: str
    severity: Severity
    detail: str
    device: str | None = None
    peer: str | None = None

    def as_json(self) -> dict[str, str]:
        """For the web pages."""
        return {"code": self.code, "severity": self.severity.word, "about": self.peer or "", "detail": self.detail}

    def about(self, subject: str) -> bool:
        """Whether it concerns the device or peer of this name."""
        return subject in (self.device, self.peer)


@dataclass(frozen=True, slots=True)
class DonorFacts:
    """What a daemon says of itself. None: it does not say, or was not asked."""

    address: str
    answers: bool
    why: str = ""  # it does not answer
    lending: bool | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None
    used_bytes: int | None = None
    available_bytes: int | None = None  # of its host
    headroom_bytes: int | None = None
    missing_bytes: int | None = None  # that slabs must give back now
    pressure_percent: float | None = None


def worst(findings: Iterable[Finding]) -> Severity:
    """The severity of all together."""
    return max((finding.severity for finding in findings), default=Severity.OK)


def of_missing_device(name: str, *, dead: bool, why: str) -> Finding:
    """A device that could not be asked. dead: its process has ended."""
    return Finding("DEVICE_DEAD" if dead else "DEVICE_SILENT", Severity.ERROR, why, device=name)


def unheard_shards(status: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Those that do not serve or do not answer, so that no number of the device's is of them.

    Of one that is stopped in order there is none: all of it is on its backup.
    """
    return [shard for shard in status.get("shards") or () if shard["state"] not in ("serving", "stopping", "stopped")]


def of_device(snapshot: Mapping[str, Any]) -> list[Finding]:
    """What is the matter with a device that answers."""
    status, name = snapshot["status"], str(snapshot["status"]["name"])
    found = [*_of_peers(name, snapshot), *_of_backup(name, snapshot), *_of_pages(name, snapshot["stats"])]
    stopping = status.get("state") == "stopping"
    for shard in unheard_shards(status):
        killed = shard["state"] == "dead"
        then = "the device is stopping: start it again then" if stopping else "its parent starts it again"
        why = f"dead: {shard['why']}; {then}" if killed else "its process does not answer"
        found.append(of_missing_device(str(shard["name"]), dead=killed, why=why))
    dead, open_ = status.get("nbd_dead") or 0, status.get("nbd_connections") or 0
    if dead:
        severity = Severity.ERROR if dead >= open_ else Severity.WARNING
        detail = f"the kernel has given up {dead} of its {open_} connections: page-ins may wait for a new one"
        found.append(Finding("CONNECTIONS_DEAD", severity, detail, name))
    return found


def _of_peers(name: str, snapshot: Mapping[str, Any]) -> Iterable[Finding]:
    peers: Sequence[Mapping[str, Any]] = snapshot["peers"]
    reached = [peer for peer in peers if peer["state"] in ("up", "slow")]
    if not peers:
        yield Finding("NO_PEERS", Severity.WARNING, "no peers are configured: everything goes to the backup", name)
    for peer in peers:
        address = str(peer["peer"])
        if peer["state"] == "slow":
            yield Finding("PEER_SLOW", Severity.WARNING, "answers too late; gets little to do", name, address)
        elif peer not in reached:
            alone = "" if reached else "; no peer is left, everything goes to the backup"
            detail = f"{peer['state']}: {peer['last_error'] or 'not reached yet'}{alone}"
            yield Finding("PEER_DOWN", Severity.WARNING if reached else Severity.ERROR, detail, name, address)
        elif peer.get("lending") not in (None, "lending"):
            held = f"{peer['lending']}; it holds {_counted(int(peer['slabs']), 'slab')} of this device"
            yield Finding("DONOR_CORDONED", Severity.WARNING, held, name, address)
    lenders = [peer for peer in reached if peer.get("lending") in (None, "lending")]
    slab_bytes, without = int(snapshot["status"]["slab_bytes"]), int(snapshot["slabs"]["unmapped"])
    full = all(peer["free_bytes"] is not None and int(peer["free_bytes"]) < slab_bytes for peer in lenders)
    if reached and full and without:
        detail = (
            f"no peer has memory for a slab; {without} of {snapshot['status']['slabs']} slabs have no remote memory"
        )
        yield Finding("NO_ROOM", Severity.WARNING, detail, name)


def _of_backup(name: str, snapshot: Mapping[str, Any]) -> Iterable[Finding]:
    status, stats = snapshot["status"], snapshot["stats"]
    if status.get("backup_state") == "degraded":
        detail = "; ".join(str(problem) for problem in status.get("backup_problems", ())) or "it is degraded"
        yield Finding("BACKUP_FAILING", Severity.ERROR, f"backup {status['backup']}: {detail}", name)
    pending, limit = int(stats["pending_bytes"]), int(stats["pending_limit_bytes"])
    if limit and pending >= LAGGING_SHARE * limit:
        share = min(999, round(100 * pending / limit))
        detail = f"{share} % of the pending limit waits for the backup; at 100 % writes are as slow as the disk"
        yield Finding("BACKUP_LAGGING", Severity.WARNING, detail, name)


def _of_pages(name: str, stats: Mapping[str, Any]) -> Iterable[Finding]:
    counters = stats["counters"]

    def count(key: str) -> int:
        return int(counters.get(key, 0))

    if lost := count("unreadable_pages"):
        detail = f"{_counted(lost, 'page')} cannot be read until written again: the last copy is gone"
        yield Finding("LOST_PAGES", Severity.ERROR, detail, name)
    if doubtful := count("doubtful_pages"):
        detail = f"{_counted(doubtful, 'page')} may not be on the backup, for fdatasync failed"
        yield Finding("UNPROTECTED_PAGES", Severity.ERROR, detail, name)
    elif only := count("only_remote_pages"):
        detail = f"{_counted(only, 'page')} are in peers' memory alone since the last kill; on their way to the backup"
        yield Finding("UNPROTECTED_PAGES", Severity.WARNING, detail, name)
    if changed := int(stats["failures"].get("checksum_mismatches", 0)):
        detail = f"{_counted(changed, 'page')} came back from a peer changed since the start (peers -o +MISMATCHES)"
        yield Finding("PAGES_CHANGED", Severity.WARNING, detail, name)
    if count("broken_invariants"):
        yield Finding("ENGINE_BROKEN", Severity.ERROR, "the log says what; please report it", name)


def of_donor(donor: DonorFacts, *, here: bool = False) -> list[Finding]:
    """What is the matter with a daemon. here: it is this host's own, and the matter of whoever looks."""
    if not donor.answers:
        severity = Severity.ERROR if here else Severity.WARNING
        return [Finding("DONOR_DOWN", severity, donor.why, peer=donor.address)]
    found = []
    if donor.lending is False:
        found.append(Finding("DONOR_CORDONED", Severity.WARNING, "lends nothing new", peer=donor.address))
    reasons = []
    if donor.pressure_percent is not None and donor.pressure_percent >= PRESSURE_PERCENT_HIGH:
        reasons.append(f"programs wait for memory ({donor.pressure_percent:.0f} % of the last 10 s)")
    if donor.missing_bytes:
        reasons.append("it takes slabs back")
    short = donor.available_bytes is not None and donor.headroom_bytes is not None
    if short and (donor.available_bytes or 0) < (donor.headroom_bytes or 0):
        reasons.append("less than its headroom is available")
    if reasons:
        found.append(Finding("DONOR_PRESSURE", Severity.WARNING, "; ".join(reasons), peer=donor.address))
    return found


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
