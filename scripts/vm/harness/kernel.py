"""The machines' kernel: Debian's 6.12, unpacked once into a cache, and an initramfs that mounts the host's root."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HarnessError

BOOT_MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "9p", "9pnet_virtio", "overlay", "ext4", "crc32c_generic")
TOOLS = (
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("cpio", "cpio"),
    ("modprobe", "kmod"),
    ("xz", "xz-utils"),
    ("busybox", "busybox-static"),
)
APT_TIMEOUT_S = 600
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Kernel:
    """What a machine boots: image, the folder that holds lib/modules, and the version's name."""

    image: Path
    base: Path
    version: str


def which(command: str) -> str | None:
    """Where a command is, also when PATH lacks the sbin folders (as an ordinary user's does)."""
    return shutil.which(command, path=f"{os.environ.get('PATH', '')}:{_PATH}")


def run_command(command: list[str], *, cwd: Path | None = None, timeout_s: float = APT_TIMEOUT_S) -> str:
    """What it says; HarnessError when it fails."""
    path = f"{os.environ.get('PATH', '')}:{_PATH}"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C", "PATH": path}
    try:
        done = subprocess.run(
            command,
            check=False,
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HarnessError(f"{' '.join(command[:3])} failed: {error}") from error
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise HarnessError(f"{' '.join(command[:3])} failed: {last}")
    return done.stdout


def is_there(what: str) -> bool:
    """Whether a command, or a file by its path, is on this host."""
    return Path(what).exists() if what.startswith("/") else which(what) is not None


def install(wanted: list[tuple[str, str]]) -> None:
    """Install the packages of those commands or files that are missing; needs root or sudo only when one is."""
    missing = sorted({package for what, package in wanted if not is_there(what)})
    if not missing:
        return
    if os.geteuid() == 0:
        prefix: list[str] = []
    elif which("sudo"):
        prefix = ["sudo", "-n"]
    else:
        raise HarnessError(f"missing packages; as root: apt-get install {' '.join(missing)}")
    print(f"installing {' '.join(missing)}", flush=True)
    command = [*prefix, "apt-get", "install", "-y", "--no-install-recommends", *missing]
    try:
        run_command(command)
    except HarnessError:
        run_command([*prefix, "apt-get", "update"])  # a fresh image has no package lists yet
        run_command(command)


def _package() -> str:
    """Name of the newest 6.12 image package that apt knows."""
    for meta in ("linux-image-6.12-amd64", "linux-image-amd64"):
        try:
            text = run_command(["apt-cache", "depends", meta])
        except HarnessError:
            continue
        for line in text.splitlines():
            if "Depends:" in line and "linux-image-6.12" in line:
                return line.split()[-1]
    raise HarnessError("apt knows no linux-image-6.12 package: use Debian 12 with bookworm-security, or Debian 13")


def _unpacked(folder: Path) -> Kernel | None:
    images = sorted(folder.glob("boot/vmlinuz-*"))
    if not images:
        return None
    version = images[-1].name.removeprefix("vmlinuz-")
    for base in (folder, folder / "usr"):
        if (base / "lib/modules" / version / "modules.dep").exists():
            return Kernel(images[-1], base, version)
    return None


def fetch(cache: Path) -> Kernel:
    """The kernel in cache, downloaded with apt-get when it is not there; the caller holds the cache's lock."""
    folder = cache / "kernel"
    kernel = _unpacked(folder)
    if kernel:
        return kernel
    try:
        package = _package()
    except HarnessError:
        prefix = [] if os.geteuid() == 0 else ["sudo", "-n"]
        run_command([*prefix, "apt-get", "update"])
        package = _package()
    print(f"fetching {package} (once, into {cache})", flush=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        work = Path(temporary)
        run_command(["apt-get", "download", package], cwd=work)
        archives = list(work.glob("*.deb"))
        if len(archives) != 1:
            raise HarnessError(f"apt-get download {package} left no package")
        run_command(["dpkg-deb", "-x", str(archives[0]), "unpacked"], cwd=work)
        base = work / "unpacked"
        versions = [*base.glob("lib/modules/*"), *base.glob("usr/lib/modules/*")]
        if len(versions) != 1:
            raise HarnessError(f"{package} holds no modules")
        run_command(["depmod", "-b", str(versions[0].parents[2]), versions[0].name])
        shutil.rmtree(folder, ignore_errors=True)
        base.rename(folder)
    kernel = _unpacked(folder)
    if kernel is None:
        raise HarnessError(f"{package} is not laid out as expected: look into {folder}")
    return kernel


def initramfs(cache: Path, kernel: Kernel, init: Path) -> Path:
    """The initramfs for kernel with init as its first process; built anew when either has changed."""
    busybox = which("busybox")
    if busybox is None:
        raise HarnessError("busybox is missing: apt-get install busybox-static")
    seed = f"{kernel.version} {BOOT_MODULES} {busybox} {Path(busybox).stat().st_mtime_ns}\n{init.read_text()}"
    target = cache / f"initrd-{hashlib.sha256(seed.encode()).hexdigest()[:16]}.gz"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        root = Path(temporary) / "root"
        for name in ("bin", "proc", "sys", "dev", "modules", "host", "upper", "new"):
            (root / name).mkdir(parents=True)
        shutil.copy(busybox, root / "bin/busybox")
        shutil.copy(init, root / "init")
        (root / "init").chmod(0o755)
        order: list[str] = []
        for module in BOOT_MODULES:
            for file in _insertion_order(kernel, module):
                name = file.name.removesuffix(".xz")
                if name in order:
                    continue
                data = file.read_bytes()
                (root / "modules" / name).write_bytes(lzma.decompress(data) if file.suffix == ".xz" else data)
                order.append(name)
        (root / "modules/order").write_text("\n".join(order) + "\n")
        archive = _cpio(root)
        packed = Path(temporary) / "initrd.gz"
        with gzip.open(packed, "wb", compresslevel=1) as out:
            out.write(archive)
        for old in cache.glob("initrd-*.gz"):
            old.unlink()
        packed.rename(target)
    return target


def _insertion_order(kernel: Kernel, module: str) -> list[Path]:
    text = run_command(["modprobe", "-d", str(kernel.base), "-S", kernel.version, "--show-depends", module])
    return [Path(line.split()[1]) for line in text.splitlines() if line.startswith("insmod ")]


def _cpio(root: Path) -> bytes:
    names = "\0".join(str(p.relative_to(root)) for p in sorted(root.rglob("*")))
    command = [which("cpio") or "cpio", "--null", "-o", "-H", "newc", "--quiet"]
    done = subprocess.run(command, check=False, cwd=root, input=names.encode(), capture_output=True, timeout=120)
    if done.returncode != 0:
        raise HarnessError(f"cpio failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout
