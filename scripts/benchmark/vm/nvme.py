"""The kernel's own way to remote memory: a RAM disk (brd) behind nvmet, reached by nvme-rdma or nvme-tcp.

Everything goes through configfs and /dev/nvme-fabrics (Documentation/nvme and nvmet-configfs in nvmetcli's sources).
For a machine that is thrown away: what it sets up stays, but for the connection.
"""

from __future__ import annotations

import re
import time
from contextlib import ExitStack
from pathlib import Path

from infiniswap.shared.errors import ExitCode, UserError
from scripts.benchmark.swap.area import run

CONFIGFS = Path("/sys/kernel/config")
FABRICS = Path("/dev/nvme-fabrics")
RAM_DISK = Path("/dev/ram0")
PORTS = {"rdma": 4421, "tcp": 4422}
NODE_TIMEOUT_S = 30.0
_POLL_S = 0.1


def load_modules(transport: str, size_bytes: int) -> None:
    """Target, host and RAM disk; UserError when the kernel lacks one."""
    run(["modprobe", "brd", "rd_nr=1", f"rd_size={size_bytes >> 10}"])
    run(["modprobe", "-a", f"nvmet-{transport}", f"nvme-{transport}"])
    if not (CONFIGFS / "nvmet").exists():
        run(["mount", "-t", "configfs", "none", str(CONFIGFS)])


def subsystem_name(transport: str) -> str:
    """What target and host call it."""
    return f"ram-over-{transport}"


def offer(transport: str, address: str) -> None:
    """Make the RAM disk a namespace of a subsystem of its own, on a port of its own."""
    nvmet = CONFIGFS / "nvmet"
    subsystem = nvmet / "subsystems" / subsystem_name(transport)
    namespace = subsystem / "namespaces" / "1"
    port = nvmet / "ports" / str(PORTS[transport])
    try:
        subsystem.mkdir()
        (subsystem / "attr_allow_any_host").write_text("1")
        namespace.mkdir()
        (namespace / "device_path").write_text(str(RAM_DISK))
        (namespace / "enable").write_text("1")
        port.mkdir()
        (port / "addr_trtype").write_text(transport)
        (port / "addr_adrfam").write_text("ipv4")
        (port / "addr_traddr").write_text(address)
        (port / "addr_trsvcid").write_text(str(PORTS[transport]))
        (port / "subsystems" / subsystem.name).symlink_to(subsystem)
    except OSError as error:
        raise UserError(f"nvmet-{transport}: {error.filename}: {error.strerror}", ExitCode.FAILED) from None


def parse_instance(answer: str) -> int:
    """N of /dev/nvmeN from what /dev/nvme-fabrics answers: "instance=0,cntlid=1"; ValueError when it does not say."""
    match = re.search(r"\binstance=(\d+)\b", answer)
    if match is None:
        raise ValueError(f"/dev/nvme-fabrics answered {answer!r}")
    return int(match[1])


def node_name(name: str) -> str:
    """The block device of a namespace in a controller's folder in sysfs: with multipathing nvme0c1n1 is nvme0n1."""
    return re.sub(r"^(nvme\d+)c\d+(n\d+)$", r"\1\2", name)


def connect(transport: str, address: str, undo: ExitStack) -> Path:
    """Connect the kernel's host to what offer() offers; the block device. Queues as the kernel chooses by itself."""
    words = f"transport={transport},traddr={address},trsvcid={PORTS[transport]},nqn={subsystem_name(transport)}"
    try:
        with FABRICS.open("r+b", buffering=0) as control:
            control.write(words.encode())
            instance = parse_instance(control.read(4096).decode(errors="replace"))
    except (OSError, ValueError) as error:
        raise UserError(f"nvme-{transport} does not connect: {error}", ExitCode.FAILED) from None
    folder = Path(f"/sys/class/nvme/nvme{instance}")
    undo.callback((folder / "delete_controller").write_text, "1")
    end_s = time.monotonic() + NODE_TIMEOUT_S
    while time.monotonic() < end_s:
        for found in folder.glob("nvme*n1"):
            node = Path("/dev", node_name(found.name))
            if node.is_block_device():
                return node
        time.sleep(_POLL_S)
    raise UserError(f"nvme-{transport} shows no block device within {NODE_TIMEOUT_S:.0f} s", ExitCode.FAILED)
