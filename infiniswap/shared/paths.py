"""Where a device keeps its state, its sockets and its lock."""

import os
from pathlib import Path

from infiniswap.shared.shard_names import is_shard, number_of, whole_of

CONTROL_SUFFIX = ".control"
NBD_SUFFIX = ".sock"
LOCK_SUFFIX = ".lock"
_SYSTEM_BACKUPS = Path("/var/lib/infiniswap/.backups")
SYSTEM_RUNTIME_DIR = Path("/run/infiniswap")  # root's
UNIX_PATH_BYTES_MAX = 107  # sun_path of unix(7) without the terminating zero


def default_state_dir() -> Path:
    """Directory that holds one folder per device; outlives a reboot."""
    if given := os.environ.get("INFINISWAP_STATE_DIR"):
        return Path(given)
    if os.geteuid() == 0:
        return Path("/var/lib/infiniswap")
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "infiniswap"


def default_runtime_dir() -> Path:
    """Directory for sockets and locks; gone after a reboot."""
    if given := os.environ.get("INFINISWAP_RUNTIME_DIR"):
        return Path(given)
    if os.geteuid() == 0:
        return SYSTEM_RUNTIME_DIR
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base) / "infiniswap" if base else Path(f"/tmp/infiniswap-{os.getuid()}")


def config_dir() -> Path:
    """Directory of the configuration files of devices and of the daemon."""
    return Path(os.environ.get("INFINISWAP_CONFIG_DIR") or "/etc/infiniswap")


def config_file(name: str) -> Path:
    """Where the configuration of a device, or of infiniswapd, is looked for when no other place is named."""
    return config_dir() / f"{name}.toml"


def tls_dir() -> Path:
    """Where 'infiniswap cluster' keeps a certificate, and on one host of the cluster its authority."""
    base = os.environ.get("XDG_CONFIG_HOME")
    if os.geteuid() == 0 or os.environ.get("INFINISWAP_CONFIG_DIR") or not (base or os.environ.get("HOME")):
        return config_dir() / "tls"
    return (Path(base) if base else Path.home() / ".config") / "infiniswap" / "tls"


def tls_dirs() -> list[Path]:
    """Where programs look for a certificate by themselves: this user's own place, then the host's."""
    return list(dict.fromkeys((tls_dir(), config_dir() / "tls")))


def backups_dir() -> Path:
    """Where marks of backups are kept that cannot carry them: one place for all state directories, outlives a boot."""
    if given := os.environ.get("INFINISWAP_BACKUPS_DIR"):
        return Path(given)
    if os.geteuid() == 0:
        return _SYSTEM_BACKUPS  # no device's name begins with a dot
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "infiniswap" / ".backups"


def backups_dirs() -> list[Path]:
    """All places where such marks may be: those of root count for everybody."""
    own = backups_dir()
    return [own] if own == _SYSTEM_BACKUPS or "INFINISWAP_BACKUPS_DIR" in os.environ else [own, _SYSTEM_BACKUPS]


def control_socket(runtime_dir: Path, name: str) -> Path:
    """UNIX socket of the device's control API."""
    return runtime_dir / (name + CONTROL_SUFFIX)


def nbd_socket(runtime_dir: Path, name: str) -> Path:
    """UNIX socket where the device serves NBD when no other is asked for."""
    return runtime_dir / (name + NBD_SUFFIX)


def lock_file(runtime_dir: Path, name: str) -> Path:
    """File whose flock says that the name is in use."""
    return runtime_dir / (name + LOCK_SUFFIX)


def device_state_dir(state_dir: Path, name: str) -> Path:
    """Folder of one device's state file and leases."""
    return state_dir / name


def device_names(runtime_dir: Path) -> list[str]:
    """Names of devices that have a control socket in runtime_dir, running or left behind, sorted; shards are left out.

    A device whose parent was killed has shards, and a socket that was left behind.
    """
    return [name for name in _with_sockets(runtime_dir) if not is_shard(name)]


def shard_names(runtime_dir: Path, whole: str) -> list[str]:
    """Shards of device whole that have a control socket, running or left behind."""
    found = [name for name in _with_sockets(runtime_dir) if is_shard(name) and whole_of(name) == whole]
    return sorted(found, key=number_of)


def _with_sockets(runtime_dir: Path) -> list[str]:
    try:
        found = [path.name for path in runtime_dir.iterdir() if path.suffix == CONTROL_SUFFIX]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(name.removesuffix(CONTROL_SUFFIX) for name in found)
