"""A device that does not run, held so that it does not begin to while something is done to it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from infiniswap.device.startup import hold_name
from infiniswap.kernel_shim import sysfs
from infiniswap.shared.address import check_name
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.paths import lock_file


@dataclass(frozen=True, slots=True)
class OfflineName:
    """What hold_name needs to know."""

    name: str
    runtime_dir: Path

    @property
    def lock_path(self) -> Path:
        """Its lock."""
        return lock_file(self.runtime_dir, self.name)


def hold_offline(name: str, runtime_dir: Path, held: ExitStack) -> None:
    """Until held ends nobody else starts it. UserError: it runs, or the kernel waits for it to come back."""
    check_name(name)
    undo = held.enter_context(ExitStack())
    hold_name(OfflineName(name, runtime_dir), held, undo)
    kernel_device = sysfs.attached(name)
    if kernel_device is not None:
        raise UserError(
            f"'{name}' is attached as {kernel_device.path}, which waits for it to be started again; start it, and "
            f"'infiniswap device detach {name}' first",
            ExitCode.IN_USE,
        )
