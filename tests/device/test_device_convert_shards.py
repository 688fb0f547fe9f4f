"""Converting the shards of a device one by one: what is said, and what its name alone means afterwards."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from infiniswap.shared.errors import ExitCode
from tests.support.backups import loop_device
from tests.support.services import INFINISWAP, READY_TIMEOUT_S, Services
from tests.support.shards import check_both, serve, write_both

pytestmark = pytest.mark.usefixtures("no_shard_stays")
MIB = 1 << 20


def convert(services: Services, number: int, to: str, backup: Path | str | None = None) -> str:
    """One shard, and what is said of it. backup: of the whole."""
    where = [] if backup is None else ["--backup", f"{backup}~{number}"]
    done = services.command("device", "convert", f"vol~{number}", "--to", to, *where)
    assert done.returncode == ExitCode.OK, done.stderr
    return done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="a loop device takes root")
def test_onto_block_devices_by_links(services: Services) -> None:
    """The start that convert names is by the links as they were given, and has everything: no file in /dev."""
    device = serve(services)
    data = write_both(device)
    assert device.stop() == ExitCode.OK
    before = set(Path("/dev").iterdir())
    for number in range(2):
        convert(services, number, "log")
    link = services.folder / "lnk"
    with ExitStack() as held:
        for number in range(2):
            disk = held.enter_context(loop_device(services.folder / f"disk{number}", 16 * MIB))
            Path(f"{link}~{number}").symlink_to(disk)
            said = convert(services, number, "raw", link)
            assert f"its backup {link}~{number} is raw now" in said
            assert f"start 'vol' with --backup-layout raw --backup {link}\n" in said
        options = ("--backup-layout", "raw", "--backup", str(link))
        again = services.spawn("again", [*INFINISWAP, "device", "serve", "vol", *options])
        again.read_ready(READY_TIMEOUT_S)
        check_both(device, data)
        assert again.stop() == ExitCode.OK
    assert [path for path in Path("/dev").glob("*~*") if path not in before] == []
