"""infiniswap top as an SVG: three daemons and a device on this host under fio's load, in a terminal of 80×24."""

from __future__ import annotations

import io
import re
import subprocess
import tempfile
import time
from pathlib import Path

import click
from rich.console import Console
from rich.terminal_theme import MONOKAI

from infiniswap.cli.demo.cluster import DemoCluster
from infiniswap.cli.top.command import CELLS
from infiniswap.cli.top.sampler import Sampler
from infiniswap.cli.top.screen import View, paint

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
WIDTH, HEIGHT = 80, 24
DAEMON_BYTES, DEVICE_BYTES, SLAB_BYTES = 256 * MIB, 1024 * MIB, 2 * MIB
WARM_UP_S, LOAD_S = 15.0, 30
_FONT_FACE = re.compile(r"\s*@font-face \{.*?\}", re.DOTALL)  # from elsewhere; any fixed font does


def _fio(cluster: DemoCluster, *options: str) -> subprocess.Popen[bytes]:
    uri = f"nbd+unix:///{cluster.NAME}?socket={cluster.socket}"
    command = ["fio", "--name=pages", "--thread", "--ioengine=nbd", f"--uri={uri}", f"--size={DEVICE_BYTES // 2}"]
    return subprocess.Popen([*command, "--output=/dev/null", *options], stdin=subprocess.DEVNULL)


def _load(cluster: DemoCluster) -> subprocess.Popen[bytes]:
    """Half of the device is used, most of it seldom: reads and writes of pages, as of programs that are paged."""
    _fio(cluster, "--rw=write", "--bs=128k", "--iodepth=4").wait()
    skewed = ("--rw=randrw", "--rwmixread=70", "--bs=4k", "--iodepth=8", "--random_distribution=normal:14")
    return _fio(cluster, *skewed, "--time_based", f"--runtime={LOAD_S}", "--rate_iops=14000,6000")


@click.command()
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), default=ROOT / "docs" / "top.svg")
def main(output: Path) -> None:
    """Draw infiniswap top."""
    with tempfile.TemporaryDirectory(prefix="top-", dir="/tmp") as folder, DemoCluster(Path(folder)) as cluster:
        cluster.start_daemons(3, DAEMON_BYTES, 0)
        cluster.start_device(DEVICE_BYTES, SLAB_BYTES)
        load = _load(cluster)
        try:
            time.sleep(WARM_UP_S)
            sampler = Sampler((cluster.NAME,), cluster.runtime_dir, CELLS)
            sampler.first()
            time.sleep(1.0)
            lines = paint(sampler.look(), View(), WIDTH, HEIGHT, time.strftime("%H:%M:%S"))
        finally:
            load.terminate()
            load.wait()
    console = Console(file=io.StringIO(), record=True, width=WIDTH, force_terminal=True, color_system="truecolor")
    for line in lines:
        console.print(line, no_wrap=True, highlight=False)
    picture = console.export_svg(title="infiniswap top", theme=MONOKAI)
    output.write_text(_FONT_FACE.sub("", picture))


if __name__ == "__main__":
    main()
