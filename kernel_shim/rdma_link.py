"""`infiniswap rdma setup` and `teardown`: soft-RoCE, an RDMA device in software on an ordinary network interface.

Nothing is touched before every check has passed, and what fails after the link was made removes it again.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from infiniswap.kernel_shim import commands, kernel_call, rdma_sysfs
from infiniswap.kernel_shim.kernel_call import CALL_TIMEOUT_S, KernelError, NoAnswerError
from infiniswap.kernel_shim.rdma_sysfs import SoftLink
from infiniswap.rdma.devices import Gid, GidType, Port, list_ports
from infiniswap.shared.errors import ExitCode, UserError

READY_TIMEOUT_S = 30.0
TEARDOWN_TIMEOUT_S = 30.0
MODPROBE_TIMEOUT_S = 60.0
LINKS_MAX = 256  # rxe0 to rxe255 are tried for a name
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,62}")  # IB_DEVICE_NAME_MAX 64, with its closing zero
_POLL_S = 0.05

Say = Callable[[str], None]
Addresses = Callable[[str], Collection[str]]


@dataclass(frozen=True, slots=True)
class Made:
    """A link that can be used, and the GID it is reached by. new: it was not there before."""

    port: Port
    gid: Gid
    netdev: str
    new: bool


def addresses_of(netdev: str) -> tuple[str, ...]:
    """IP addresses of a network interface, under its alias names too."""
    found = []
    for label, entries in psutil.net_if_addrs().items():
        if label.partition(":")[0] == netdev:
            found += [entry.address.partition("%")[0] for entry in entries]
    return tuple(address for address in found if _is_routable(address))


def _is_routable(address: str) -> bool:
    try:
        return not ipaddress.ip_address(address).is_link_local
    except ValueError:  # a hardware address
        return False


def setup(
    netdev: str,
    *,
    name: str | None = None,
    timeout_s: float = READY_TIMEOUT_S,
    addresses: Addresses = addresses_of,
    run: commands.Runner = commands.run,
    root: Path = Path("/"),
) -> Made:
    """Make a soft-RoCE link on a network interface, or find the one it has. UserError when it cannot be used."""
    require_root("making a soft-RoCE link")
    check_netdev(netdev, addresses, root)
    link = existing(netdev, name, root)
    if link is not None:
        return Made(*wait_until_ready(link.name, timeout_s, root), netdev, new=False)
    name = choose_name(name, root)
    load_modules(run, root)
    try:
        _add(name, netdev)
        return Made(*wait_until_ready(name, timeout_s, root), netdev, new=True)
    except KernelError as error:
        link = existing(netdev, None, root) if error.number == errno.EEXIST else None
        if link is None:
            raise _explained(error, name, netdev) from None
        # Another setup came first.
        return Made(*wait_until_ready(link.name, timeout_s, root), netdev, new=False)
    except BaseException:
        _undo(name, netdev, root)
        raise


def require_root(what: str) -> None:
    """UserError unless this process runs as root."""
    if os.geteuid() != 0:
        raise UserError(f"{what} needs root: run it with sudo", ExitCode.RESOURCES)


def check_netdev(name: str, addresses: Addresses, root: Path = Path("/")) -> None:
    """UserError unless soft-RoCE on that network interface could carry anything."""
    netdev = rdma_sysfs.read_netdev(name, root)
    if netdev is None:
        there = ", ".join(rdma_sysfs.netdev_names(root))
        raise UserError(f"no network interface '{name}'; there are {there}", ExitCode.NOT_FOUND)
    if netdev.vlan:
        raise UserError(
            f"{name} is a VLAN: name the interface under it, whose link serves the VLAN's addresses too",
            ExitCode.REFUSED,
        )
    soft = {link.name for link in rdma_sysfs.read_links(root)}
    own = [port for port in list_ports(root) if port.netdev == name and port.device not in soft]
    if own:
        raise UserError(
            f"{name} has RDMA in hardware, port {own[0]}: use that; soft-RoCE would only be slower", ExitCode.REFUSED
        )
    if not netdev.up:
        raise UserError(f"{name} is down: ip link set {name} up", ExitCode.FAILED)
    if not netdev.carrier:
        raise UserError(f"{name} has no carrier: is its cable plugged in, and the other end up?", ExitCode.FAILED)
    if not addresses(name):
        raise UserError(
            f"{name} has no IP address by which others reach it: ip address add ADDRESS/PREFIX dev {name}",
            ExitCode.FAILED,
        )


def existing(netdev: str, name: str | None, root: Path = Path("/")) -> SoftLink | None:
    """The link that the interface has already. UserError when it has another name than asked for, or is going."""
    for link in rdma_sysfs.read_links(root):
        if link.netdev != netdev:
            continue
        if not link.present:
            raise UserError(
                f"the former link {link.name} on {netdev} goes when it is closed{_by(None, root)}; then try again",
                ExitCode.IN_USE,
            )
        if name not in (None, link.name):
            raise UserError(
                f"{netdev} has soft-RoCE link {link.name} already, and can have only one: leave --name away, or run "
                f"`infiniswap rdma teardown {link.name}` first",
                ExitCode.IN_USE,
            )
        return link
    return None


def choose_name(wanted: str | None, root: Path = Path("/")) -> str:
    """The name asked for, or the first of rxe0, rxe1, … that is free. UserError when it cannot be had."""
    taken = rdma_sysfs.rdma_names(root)
    if wanted is None:
        for number in range(LINKS_MAX):
            if f"rxe{number}" not in taken:
                return f"rxe{number}"
        raise UserError(f"the names rxe0 to rxe{LINKS_MAX - 1} are in use: choose a --name", ExitCode.IN_USE)
    if not _NAME.fullmatch(wanted):
        raise UserError(f"--name '{wanted}' must be a letter and up to 62 more of A-Z a-z 0-9 _ . -")
    if wanted in taken:
        raise UserError(f"an RDMA device '{wanted}' is there already: choose another --name", ExitCode.IN_USE)
    return wanted


def load_modules(run: commands.Runner = commands.run, root: Path = Path("/")) -> None:
    """Load what soft-RoCE needs; UserError when this kernel does not have it."""
    if not (root / "sys/module/rdma_rxe").exists():
        done = run(["modprobe", "rdma_rxe"], MODPROBE_TIMEOUT_S)
        if done.timed_out:
            raise UserError(f"`modprobe rdma_rxe` has not ended after {MODPROBE_TIMEOUT_S:g} s", ExitCode.FAILED)
        if done.code != 0 and not (root / "sys/module/rdma_rxe").exists():
            raise UserError(
                f"this kernel has no soft-RoCE, module rdma_rxe ({done.reason}): install the distribution's kernel "
                "image (not its cloud variant) and start it",
                ExitCode.NOT_FOUND,
            )
    # Which soft-RoCE asks for by a name that finds other modules first; where it is built in there is nothing to load.
    if not (root / "sys/module/crc32_generic").exists():
        run(["modprobe", "--quiet", "crc32_generic"], MODPROBE_TIMEOUT_S)


def _add(name: str, netdev: str) -> None:
    try:
        kernel_call.call({"operation": "rdma-add", "name": name, "netdev": netdev}, CALL_TIMEOUT_S)
    except NoAnswerError as error:
        raise UserError(
            f"the kernel was asked for {name} on {netdev} and did not answer: {error}; see `dmesg | grep rxe`",
            ExitCode.FAILED,
        ) from None


def _undo(name: str, netdev: str, root: Path) -> None:
    if SoftLink(name, netdev, present=True) in rdma_sysfs.read_links(root):
        try:
            kernel_call.call({"operation": "rdma-delete", "name": name}, CALL_TIMEOUT_S)
        except (KernelError, NoAnswerError) as error:
            raise UserError(
                f"{name} on {netdev} cannot be used, nor removed: {error}; see `dmesg | grep rxe`", ExitCode.FAILED
            ) from None


def _explained(error: KernelError, name: str, netdev: str) -> UserError:
    if error.number == errno.ENODEV:
        return UserError(f"network interface {netdev} is gone", ExitCode.NOT_FOUND)
    if error.number == errno.ENFILE:
        return UserError(f"an RDMA device '{name}' is there already: choose another --name", ExitCode.IN_USE)
    if error.number in (errno.EPERM, errno.EACCES):
        return UserError(
            f"the kernel refuses soft-RoCE on {netdev}: it needs CAP_NET_ADMIN and an interface that is no VLAN",
            ExitCode.RESOURCES,
        )
    if error.number == errno.ENOENT:
        return UserError("soft-RoCE finds no crc32 in this kernel: modprobe crc32_generic", ExitCode.NOT_FOUND)
    if error.number in (errno.EPROTONOSUPPORT, errno.EINVAL):
        return UserError(f"this kernel cannot make soft-RoCE links: {error}", ExitCode.NOT_FOUND)
    return UserError(f"the kernel refused {name} on {netdev}: {error}; see `dmesg | grep rxe`", ExitCode.FAILED)


def wait_until_ready(name: str, timeout_s: float, root: Path = Path("/")) -> tuple[Port, Gid]:
    """The link's port and the GID to reach it by, as soon as programs can use it; UserError at the deadline."""
    limit = time.monotonic() + timeout_s
    while True:
        found = _ready(name, root)
        if not isinstance(found, str):
            return found
        if time.monotonic() >= limit:
            raise UserError(f"{name} cannot be used after {timeout_s:g} s: {found}", ExitCode.FAILED)
        time.sleep(_POLL_S)


def _ready(name: str, root: Path) -> tuple[Port, Gid] | str:
    node = rdma_sysfs.node_of(name, root)
    port = next((port for port in list_ports(root) if port.device == name), None)
    if node is None or port is None:
        return "the kernel does not show it"
    if not (root / node.lstrip("/")).exists():
        return f"there is no {node} (a container must be given it)"
    if not port.active:
        return f"port {port} is {port.state}"
    for gid in port.gids:
        # The first GID is made of the hardware address; nothing is routed by it.
        if gid.kind is GidType.ROCE_V2 and not gid.address.is_link_local:
            return port, gid
    return f"port {port} has no RoCE v2 GID of an IP address"


def choose_link(name: str | None, netdev: str | None, root: Path = Path("/")) -> SoftLink | None:
    """The link that teardown is asked for; None when there is none. UserError when it is not clear, or no soft-RoCE."""
    links = rdma_sysfs.read_links(root)
    if name is not None and name not in {link.name for link in links} and name in rdma_sysfs.rdma_names(root):
        raise UserError(f"{name} is no soft-RoCE link; only such are removed", ExitCode.REFUSED)
    found = [link for link in links if name in (None, link.name) and netdev in (None, link.netdev)]
    if len(found) > 1:
        there = ", ".join(f"{link.name} on {link.netdev}" for link in found)
        raise UserError(f"there are several soft-RoCE links: {there}; name one")
    return found[0] if found else None


def teardown(
    name: str | None = None,
    netdev: str | None = None,
    *,
    timeout_s: float = TEARDOWN_TIMEOUT_S,
    if_present: bool = False,
    say: Say = lambda _: None,
    root: Path = Path("/"),
) -> SoftLink | None:
    """Remove a soft-RoCE link, and return when it has gone; None when there was none and if_present allows that."""
    link = choose_link(name, netdev, root)
    if link is None:
        if if_present:
            return None
        there = ", ".join(other.name for other in rdma_sysfs.read_links(root)) or "none"
        asked = f" '{name}'" if name is not None else f" on {netdev}" if netdev is not None else ""
        raise UserError(f"no soft-RoCE link{asked}; there are {there}", ExitCode.NOT_FOUND)
    require_root("removing a soft-RoCE link")
    limit = time.monotonic() + timeout_s
    node = rdma_sysfs.node_of(link.name, root)
    if link.present:
        _delete(link, node, timeout_s, say, root)
    while link.name in rdma_sysfs.rdma_names(root):
        if time.monotonic() >= limit:
            raise _still_open(link, node, timeout_s, root)
        time.sleep(_POLL_S)
    return link


def _delete(link: SoftLink, node: str | None, timeout_s: float, say: Say, root: Path) -> None:
    said: list[Sequence[rdma_sysfs.User]] = [()]

    def progress() -> None:
        # The kernel has been asked once the node is gone; only then it is users that it waits for.
        users = rdma_sysfs.users(node, root) if rdma_sysfs.node_of(link.name, root) is None else ()
        if users and users != said[-1]:
            said.append(users)
            say(f"waiting for {_listed(users)} to close {link.name}")

    try:
        kernel_call.call({"operation": "rdma-delete", "name": link.name}, timeout_s, progress=progress)
    except NoAnswerError as error:
        if rdma_sysfs.node_of(link.name, root) is None:
            raise _still_open(link, node, timeout_s, root) from None
        reason = f"not asked within {timeout_s:g} s: choose a longer --timeout" if error.timed_out else str(error)
        raise UserError(f"{link.name} was not removed: {reason}", ExitCode.FAILED) from None
    except KernelError as error:
        if error.number == errno.ENODEV:  # somebody else removes it
            return
        if error.number in (errno.EPERM, errno.EACCES):
            raise UserError("the kernel refuses: removing a link needs CAP_NET_ADMIN", ExitCode.RESOURCES) from None
        raise UserError(f"the kernel refused to remove {link.name}: {error}", ExitCode.FAILED) from None


def _listed(users: Sequence[rdma_sysfs.User]) -> str:
    return ", ".join(map(str, users[:8])) + (f" and {len(users) - 8} more" if len(users) > 8 else "")


def _by(node: str | None, root: Path) -> str:
    users = rdma_sysfs.users(node, root)
    return f" by {_listed(users)}" if users else ""


def _still_open(link: SoftLink, node: str | None, timeout_s: float, root: Path) -> UserError:
    return UserError(
        f"{link.name} is still open after {timeout_s:g} s; no program can open it any more, and it goes by itself when "
        f"it is closed{_by(node, root)}",
        ExitCode.IN_USE,
    )
