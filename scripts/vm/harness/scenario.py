"""What a scenario file asks for: the words behind `# vm:` in its first lines."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HarnessError

HEADER_LINES_MAX = 30
_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_LIMITS = {"machines": (1, 2), "cores": (1, 8), "memory": (256, 8192), "deadline": (1, 3600), "keep": (0, 1)}
_THROTTLES = {"iops", "iops_read", "iops_write", "bps", "bps_read", "bps_write"}


@dataclass(frozen=True, slots=True)
class Disk:
    """A scratch disk: size_bytes, and QEMU's throttling.* values by their names there (iops-total, bps-total, …)."""

    size_bytes: int
    throttling: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Scenario:
    """A file to run in every one of `machines` machines, and what each of them has."""

    path: Path
    machines: int = 1
    cores: int = 1
    memory_mib: int = 1024
    deadline_s: int = 300
    disks: tuple[Disk, ...] = ()
    packages: tuple[tuple[str, str], ...] = ()
    keep: bool = False  # the first disk is the root's upper layer, and a reboot is one
    before: tuple[str, ...] = ()  # a command of the checkout that the host runs before the machines boot

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return self.path.stem


def _number(text: str, what: str) -> int:
    match = re.fullmatch(r"(\d+)([KMG]?)", text)
    if match is None:
        raise HarnessError(f"{what} is {text!r}, not a number (K, M or G may follow it)", 2)
    return int(match[1]) * _SIZES[match[2]]


def _disk(text: str) -> Disk:
    size, *rest = text.split(",")
    throttling: list[tuple[str, int]] = []
    for item in rest:
        name, _, value = item.partition("=")
        if name not in _THROTTLES:
            raise HarnessError(f"disk has no setting {name!r}; there are {', '.join(sorted(_THROTTLES))}", 2)
        kind, _, way = name.partition("_")
        throttling.append((f"{kind}-{way or 'total'}", _number(value, name)))
    return Disk(_number(size, "disk"), tuple(throttling))


def parse(path: Path, text: str) -> Scenario:
    """Read the header of a scenario.

    A line `# vm: memory=512 disk=1G,iops=200` sets values; a word `COMMAND:PACKAGE` behind `# needs:` names the Debian
    package that is installed on the host when the command, or the file of that path, is missing. `# before:` is
    followed by a command of the checkout that the host runs first. HarnessError for what is not known.
    """
    values: dict[str, int] = {}
    disks: list[Disk] = []
    packages: list[tuple[str, str]] = []
    before: tuple[str, ...] = ()
    for line in text.splitlines()[:HEADER_LINES_MAX]:
        if line.startswith("# needs:"):
            for word in line[len("# needs:") :].split():
                command, _, package = word.partition(":")
                packages.append((command, package or command))
        if line.startswith("# before:"):
            before = tuple(line[len("# before:") :].split())
        if not line.startswith("# vm:"):
            continue
        for word in line[len("# vm:") :].split():
            key, _, value = word.partition("=")
            if key == "disk":
                disks.append(_disk(value))
                continue
            if key not in _LIMITS:
                raise HarnessError(f"{path}: unknown setting {key!r}; there are disk, {', '.join(_LIMITS)}", 2)
            low, high = _LIMITS[key]
            values[key] = _number(value, key)
            if not low <= values[key] <= high:
                raise HarnessError(f"{path}: {key} must be between {low} and {high}", 2)
    return Scenario(
        path=path,
        machines=values.get("machines", 1),
        cores=values.get("cores", 1),
        memory_mib=values.get("memory", 1024),
        deadline_s=values.get("deadline", 300),
        disks=tuple(disks),
        packages=tuple(packages),
        keep=bool(values.get("keep")),
        before=before,
    )


def find(word: str, folder: Path) -> Scenario:
    """A scenario by the path of its file, or by the name of one in folder; HarnessError with the names there are."""
    if "/" in word or Path(word).is_file():
        path = Path(word)
    else:
        found = [p for p in sorted(folder.iterdir()) if p.stem == word]
        if not found:
            names = ", ".join(sorted(p.stem for p in folder.iterdir() if p.is_file()))
            raise HarnessError(f"no scenario {word!r}; there are {names} (or give the path of a file)", 2)
        path = found[0]
    try:
        return parse(path.resolve(), path.read_text())
    except OSError as error:
        raise HarnessError(f"cannot read scenario {path}: {error.strerror}", 2) from error
