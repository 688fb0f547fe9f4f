"""What --memory and --headroom come to on this host."""

from __future__ import annotations

from infiniswap.daemon.arena import free_huge_bytes, huge_page_bytes
from infiniswap.daemon.config import DaemonConfig
from infiniswap.policy.headroom import HostMemory, default_headroom_bytes
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.sizes import format_size


def headroom_bytes_of(config: DaemonConfig, total_bytes: int) -> int:
    """What is kept free on a host that has total_bytes."""
    if config.headroom is None:
        return default_headroom_bytes(total_bytes)
    return config.headroom.of(total_bytes, 0)


def memory_to_lend(config: DaemonConfig, host: HostMemory) -> int:
    """Bytes of the arena; UserError when the host has less, or its headroom leaves none.

    auto and shares of huge pages are reckoned from those that are free: they were reserved for this.
    """
    headroom_bytes = headroom_bytes_of(config, host.total_bytes)
    if config.headroom is not None and headroom_bytes >= host.total_bytes:
        raise UserError(
            f"--headroom {format_size(headroom_bytes)} leaves nothing of this host's "
            f"{format_size(host.total_bytes)} to lend"
        )
    if config.huge_pages and config.memory.size_bytes is None:
        unit_bytes = huge_page_bytes()
        memory_bytes = config.memory.of(free_huge_bytes(), 0) // unit_bytes * unit_bytes
    else:
        memory_bytes = config.memory.of(host.total_bytes, headroom_bytes)
    if memory_bytes > host.total_bytes:
        raise UserError(
            f"--memory {format_size(memory_bytes)} is more than the {format_size(host.total_bytes)} that this host has",
            ExitCode.RESOURCES,
        )
    if memory_bytes == 0 and config.memory.size_bytes is None:
        raise UserError(
            f"--memory {config.memory} leaves nothing to lend: this host has {format_size(host.total_bytes)}, "
            f"of which {format_size(headroom_bytes)} are its headroom",
            ExitCode.RESOURCES,
        )
    return memory_bytes
