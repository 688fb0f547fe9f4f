"""What infiniswap status looks at: this host's devices and daemon and, for the cluster, all donors that they know."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from infiniswap.cli.device_list import with_kernel_devices
from infiniswap.cli.donor_client import Donors
from infiniswap.cli.top.sampler import ask_all, is_dead
from infiniswap.policy.health import DonorFacts, Finding, of_device, of_donor, of_missing_device
from infiniswap.shared.address import HostPort, parse_host_port
from infiniswap.shared.device_client import elsewhere
from infiniswap.shared.errors import UserError
from infiniswap.shared.toml_file import read_toml

ASK_TIMEOUT_S = 3.0
AT_ONCE = 16  # daemons asked at the same time
DONORS_MAX = 1024  # more than a cluster has; the rest is not asked
DAEMON_CONFIG = Path("/etc/infiniswap/infiniswapd.toml")
DAEMON_DEFAULT = HostPort("127.0.0.1", 7401)
ENABLED = Path("/etc/systemd/system/multi-user.target.wants/infiniswapd.service")
_EVERYWHERE = ("0.0.0.0", "::")  # listens on all addresses: asked at the one of this host


@dataclass(slots=True)
class Facts:
    """devices: rows for a table. daemon: this host's own, None without one. donors: of the cluster, where asked for."""

    devices: list[dict[str, Any]] = field(default_factory=list)
    daemon: DonorFacts | None = None
    donors: list[DonorFacts] = field(default_factory=list)
    used_by: dict[str, list[str]] = field(default_factory=dict)  # donor -> devices of this host
    findings: list[Finding] = field(default_factory=list)
    nothing: str = "No device runs here."  # what is said where there is none


def gather(names: Sequence[str], runtime_dir: Path, daemon: HostPort | None, *, cluster: bool) -> Facts:
    """Ask everybody, several at a time. daemon: this host's, None to find out; names: those devices, none for all."""
    facts = Facts(nothing=f"No device in {runtime_dir}{elsewhere(runtime_dir)}")
    for name, snapshot, error in ask_all(names, runtime_dir, cells=1):
        if snapshot is None:
            dead = error is None or is_dead(error)
            facts.devices.append({"name": name, "state": "dead" if dead else "silent"})
            facts.findings.append(of_missing_device(name, dead=dead, why=str(error)))
            continue
        facts.devices.append(_row(snapshot))
        for peer in snapshot["peers"]:
            facts.used_by.setdefault(str(peer["peer"]), []).append(name)
    _add_kept_devices(facts, runtime_dir)
    _add_kernel_devices(facts)
    known = daemon or daemon_address()
    donors = Donors()
    facts.daemon = ask_donor(known, donors)
    if not facts.daemon.answers and daemon is None and not ENABLED.exists():
        facts.daemon = None  # none is meant to run here
    if facts.daemon is not None:
        facts.findings += of_donor(facts.daemon, here=True)
    if cluster:
        _ask_cluster(facts, donors)
    return facts


def _add_kept_devices(facts: Facts, runtime_dir: Path) -> None:
    """Devices that were killed and not started since, also before the last boot: nothing but their state tells."""
    from infiniswap.device.inventory import kept_devices, state_dirs

    named = {row["name"] for row in facts.devices}
    for device in kept_devices(state_dirs(None, runtime_dir)):
        if device.state == "dead" and device.name not in named:
            named.add(device.name)
            facts.devices.append(device.as_row())
            why = f"not stopped in order, and not started since; 'infiniswap device check {device.name}' tells more"
            facts.findings.append(of_missing_device(device.name, dead=True, why=why))


def _add_kernel_devices(facts: Facts) -> None:
    """What the kernel says of the devices counts before what they say themselves: they may not be root."""
    rows = with_kernel_devices(facts.devices)
    facts.devices = [row for row in rows if row["state"] != "foreign"]
    for row in facts.devices:
        snapshot = row.pop("snapshot", None)
        if snapshot is not None:
            kernel = {"nbd_dead": row["nbd_dead"], "nbd_connections": row["nbd_connections"]}
            facts.findings += of_device({**snapshot, "status": {**snapshot["status"], **kernel}})


def _row(snapshot: Mapping[str, Any]) -> dict[str, Any]:
    status, stats, peers = snapshot["status"], snapshot["stats"], snapshot["peers"]
    return {
        **{key: status[key] for key in ("name", "state", "size_bytes", "slabs", "connections", "socket")},
        "shards": status.get("shards"),
        "mapped_slabs": snapshot["slabs"]["mapped"],
        "peers": len(peers),
        "peers_up": sum(1 for peer in peers if peer["state"] in ("up", "slow")),
        "pending_bytes": stats["pending_bytes"],
        "backup_state": status["backup_state"],
        "snapshot": snapshot,
    }


def daemon_address() -> HostPort:
    """Where this host's daemon listens: as its configuration says, else the default."""
    try:
        listen = read_toml(DAEMON_CONFIG).get("listen")
        address = parse_host_port(listen, "listen") if isinstance(listen, str) else DAEMON_DEFAULT
    except UserError:
        return DAEMON_DEFAULT
    return HostPort("127.0.0.1" if address.host in _EVERYWHERE else address.host, address.port)


def _ask_cluster(facts: Facts, donors: Donors) -> None:
    own = None if facts.daemon is None else facts.daemon.address
    addresses = [parse_host_port(peer, "peer") for peer in sorted(facts.used_by) if peer != own][:DONORS_MAX]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        facts.donors = ([facts.daemon] if facts.daemon else []) + list(
            pool.map(partial(ask_donor, donors=donors), addresses)
        )
    told = {finding.peer for finding in facts.findings if finding.code == "PEER_DOWN"}
    for donor in facts.donors:
        if donor.address != own and (donor.answers or donor.address not in told):
            # A device has said that it does not lend; the host's pressure nobody but the donor tells.
            facts.findings += [f for f in of_donor(donor) if not _is_told(f, facts.findings)]


def _is_told(finding: Finding, findings: Sequence[Finding]) -> bool:
    return any(other.code == finding.code and other.peer == finding.peer for other in findings)


def ask_donor(address: HostPort, donors: Donors) -> DonorFacts:
    """What the daemon there says to everybody."""
    try:
        with donors.connect(address, ASK_TIMEOUT_S) as donor:
            answer = donor.get("/v1/stats")
    except UserError as error:
        return DonorFacts(str(address), answers=False, why=str(error))
    return parse_donor(str(address), answer)


def parse_donor(address: str, answer: object) -> DonorFacts:
    """Out of what a stranger answered: numbers that make sense, and nothing else."""
    content = answer if isinstance(answer, dict) else {}
    memory, host = content.get("memory"), content.get("host")
    if not isinstance(memory, dict) or not isinstance(content.get("lending"), bool):
        return DonorFacts(address, answers=False, why=f"{address} answers, but not as a memory daemon of this version")
    host = host if isinstance(host, dict) else {}
    return DonorFacts(
        address,
        answers=True,
        lending=content["lending"],
        total_bytes=_size(memory.get("total_bytes")),
        free_bytes=_size(memory.get("free_bytes")),
        used_bytes=_size(memory.get("used_bytes")),
        available_bytes=_size(host.get("available_bytes")),
        headroom_bytes=_size(host.get("headroom_bytes")),
        missing_bytes=_size(host.get("missing_bytes")),
        pressure_percent=_percent(host.get("pressure_percent")),
    )


def _size(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62 else None


def _percent(value: object) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good and isinstance(value, int | float) and 0 <= value <= 100 else None
