"""Converting the shards of a device one by one: what is said, and what its name alone means afterwards."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from infiniswap.shared.errors import ExitCode
from tests.support.backups import loop_device
from tests.support.services import INFINISWAP, READY_TIMEOUT_S, Service, Services
from tests.support.shards import backup_of, check_both, serve, write_both

pytestmark = pytest.mark.usefixtures("no_shard_stays")
MIB = 1 << 20


def convert(services: Services, number: int, to: str, backup: Path | str | None = None) -> str:
    """One shard, and what is said of it. backup: of the whole."""
    where = [] if backup is None else ["--backup", f"{backup}~{number}"]
    done = services.command("device", "convert", f"vol~{number}", "--to", to, *where)
    assert done.returncode == ExitCode.OK, done.stderr
    return done.stdout


def by_its_name(services: Services, *options: str) -> Service:
    """Started by its name, and what else is given."""
    again = services.spawn("again", [*INFINISWAP, "device", "serve", "vol", *options])
    again.read_ready(READY_TIMEOUT_S)
    return again


def refused(services: Services, words: str) -> None:
    """A start by its name alone and a check say the same, in a line, and nothing is made."""
    before = sorted(services.folder.iterdir())
    done = services.command("device", "serve", "vol")
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("infiniswap: ")]
    assert (done.returncode, words in line, "--adopt-image" in line) == (ExitCode.REFUSED, True, False), line
    looked = services.command("device", "check", "vol")
    assert (looked.returncode, words in looked.stdout) == (ExitCode.REFUSED, True), looked.stdout
    assert sorted(services.folder.iterdir()) == before


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
            if not number:
                assert f"once all shards are, start 'vol' with --backup {link} --backup-layout raw\n" in said
        again = by_its_name(services, "--backup-layout", "raw", "--backup", str(link))
        check_both(device, data)
        assert again.stop() == ExitCode.OK
    assert [path for path in Path("/dev").glob("*~*") if path not in before] == []


@pytest.mark.parametrize("new", [None, "new.img"])
def test_the_name_alone_starts_it_afterwards(services: Services, new: str | None) -> None:
    """The last shard's conversion makes the options of the whole say so, and lists name what there is now."""
    device = serve(services)
    data = write_both(device)
    assert device.stop() == ExitCode.OK
    backup = device.backup if new is None else services.folder / new
    for number in range(2):
        said = convert(services, number, "log", None if new is None else backup)
        assert ("all shards are: its name alone starts 'vol' with that" in said) == (number == 1), said
        if new is not None:
            backup_of(device, number).unlink()
        if not number:
            refused(services, "once all shards have theirs there" if new else "raw")
    rows = json.loads(services.command("device", "list", "--all", "--json").stdout)
    assert [(row["backup"], row["backup_layout"]) for row in rows] == [(str(backup), "log")]
    assert services.command("device", "check", "vol").returncode == ExitCode.OK
    again = by_its_name(services)
    check_both(device, data)
    assert again.stop() == ExitCode.OK


def test_a_file_that_still_names_the_old_ones(services: Services) -> None:
    """Whether the old backups are there, or some, or none: none is served in place of the device's own."""
    file = services.folder / "vol.toml"
    old, new = services.folder / "vol.img", services.folder / "new.img"
    options = f'name = "vol"\nsize = "32MiB"\nslab_size = "1MiB"\nshards = 2\nbackup = "{old}"\n'
    options += f'socket = "{services.folder}/vol.sock"\n'
    file.write_text(options)
    services.expect_log("no peers are configured")
    device = services.device("vol", "--shards", "2")
    data = write_both(device)
    assert device.stop() == ExitCode.OK
    first = services.spawn("first", [*INFINISWAP, "device", "serve", "--config", str(file)])
    first.read_ready(READY_TIMEOUT_S)
    assert first.stop() == ExitCode.OK
    convert(services, 0, "log", new)
    wanted = f'write backup_layout = "log" and backup = "{new}" into {file} before \'vol\' is started'
    assert f"all shards are: {wanted}" in convert(services, 1, "log", new)
    way_out = f"give --backup {new} --backup-layout log once all shards have theirs there, or write that into the file"
    refused(services, way_out)
    for number in range(2):
        backup_of(device, number).unlink()
        refused(services, way_out)
    file.write_text(options.replace(str(old), str(new)) + 'backup_layout = "log"\n')
    again = by_its_name(services)
    check_both(device, data)
    assert again.stop() == ExitCode.OK
