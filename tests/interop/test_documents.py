"""Every command in the documents' sh blocks is run here as it stands, or is marked there as not run by a test.

As it stands, but for places, ports and sizes of the test's own, which stand in PLACES and in World.
"""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infiniswap.nbd.client import NbdClient
from tests.support.documents import MARK, Line, commands, documents
from tests.support.pace import paced
from tests.support.services import DAEMON, INFINISWAP, Services
from tests.support.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]
COMMAND_TIMEOUT_S = 60.0
# What these begin is tested there, and takes too long to be done twice.
RUN_BY = {"./scripts/demo": "tests/cli/test_demo.py", "./scripts/test": "scripts/test"}
# Words in the documents, and what they are here. {folder}, {node…}: see World.
PLACES = {
    "/var/tmp/": "{folder}/",
    "/etc/infiniswap": "{folder}/etc",
    "/run/infiniswap": "{folder}/run",
    "10.0.0.5:7401": "{node5}",
    "10.0.0.5": "{node5}",
    "127.0.0.1:7401": "{node1}",
    "127.0.0.1:7411": "{node2}",
    "127.0.0.1:7480": "127.0.0.1:0",
    "127.0.0.1:7481": "127.0.0.1:0",
    "node3": "{node3}",
    "node7": "{node7}",
    "infiniswapd --memory auto": "infiniswapd --memory auto --listen {node7}",  # the default port may be another test's
    "--size 1GiB": "--size 64MiB",
    "200GiB …": "96MiB",
    "200GiB": "96MiB",
}
ENDLESS = re.compile(r"^infiniswap (top(?!.*--count)|.* (--watch|-f)\b)")  # until Ctrl-C
ANY_SEVERITY = re.compile(r"^infiniswap status( --cluster)?$")  # what it finds on this host is its exit code


def two_free_ports() -> int:
    """A port that is free like the one above it, below those that the kernel gives out itself."""
    for _ in range(200):
        port = random.randrange(15000, 30000, 2)
        with socket.socket() as first, socket.socket() as second:
            try:
                first.bind(("127.0.0.1", port))
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
    raise AssertionError("no two free ports")


class World:
    """A folder with what a document takes for granted; runs its commands there."""

    def __init__(self, services: Services) -> None:
        """The nodes' ports are free; nothing runs on them yet."""
        self.services = services
        self.folder = services.folder
        self.places = {"folder": str(self.folder)}
        self.places |= {f"node{number}": f"127.0.0.1:{two_free_ports()}" for number in (1, 2, 3, 5, 7)}
        (self.folder / "etc").mkdir()
        self.running: dict[str, int] = {}  # devices, by their place among the services

    def here(self, text: str) -> str:
        """With the places of this world."""
        found = re.compile("|".join(re.escape(word) for word in sorted(PLACES, key=len, reverse=True)))
        return found.sub(lambda word: PLACES[word[0]].format(**self.places), text)

    @property
    def environment(self) -> dict[str, str]:
        """Of each command; programs are those of this checkout, and nobody's home is touched."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        ours = {"HOME": str(self.folder), "INFINISWAP_CONFIG_DIR": str(self.folder / "etc"), "PATH": path}
        return {**self.services.environment, **ours}

    def run(self, text: str) -> None:
        """One command as the documents have it: to its end, until it is ready, or until it has printed something."""
        command = self.here(text)
        if text.startswith("infiniswapd "):
            self._serve("daemon", [*DAEMON, *command.split()[1:]])
        elif text.startswith("infiniswap device serve "):
            self._device(command)
        elif ENDLESS.match(text):
            self._for_a_while(command)
        else:
            self._to_its_end(command, {0, 1, 2} if ANY_SEVERITY.match(text) else {0})

    def _serve(self, label: str, command: list[str]) -> None:
        settings = ("env", "-C", str(self.folder), *(f"{name}={value}" for name, value in self.environment.items()))
        service = self.services.spawn(f"{label}-{len(self.services.started)}", [*settings, *command])
        service.read_ready(paced(COMMAND_TIMEOUT_S))

    def _device(self, command: str) -> None:
        name = command.split()[3]
        if name in self.running:  # what is run again has ended before
            assert self.services.started[self.running[name]].stop() == 0
        self.running[name] = len(self.services.started)
        self._serve(name, [*INFINISWAP, *command.split()[1:]])

    def _to_its_end(self, command: str, codes: set[int]) -> None:
        done = subprocess.run(
            ["bash", "-eo", "pipefail", "-c", command],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=paced(COMMAND_TIMEOUT_S),
            check=False,
        )
        assert done.returncode in codes, f"{command}\nended with {done.returncode}:\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr

    def _for_a_while(self, command: str) -> None:
        """Until it has printed something; Ctrl-C then ends it, and whatever it is piped into."""
        said, complaints = self.folder / "said", self.folder / "complaints"
        with said.open("wb") as out, complaints.open("wb") as err:
            process = subprocess.Popen(
                ["bash", "-c", command],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        try:
            wait_for(lambda: self._said_in_use(said), COMMAND_TIMEOUT_S, f"output of {command}")
        finally:
            os.killpg(process.pid, signal.SIGINT)
            code = process.wait(paced(COMMAND_TIMEOUT_S))
        complained = complaints.read_text()
        assert code in (0, 128 + signal.SIGINT, -signal.SIGINT), f"{command}\nended with {code}:\n{complained}"
        assert "Traceback" not in complained

    def _said_in_use(self, said: Path) -> bool:
        """Whether there is output; meanwhile something happens on the device, for those that tell of that."""
        with self.vol() as client:
            client.write(0, os.urandom(4096))
            client.flush()
        return said.stat().st_size > 0

    def vol(self) -> NbdClient:
        """A connection to the device that documents call so, wherever its socket is."""
        (path,) = [path for path in (self.folder / "vol.sock", self.folder / "run/vol.sock") if path.exists()]
        return NbdClient(path, "vol", COMMAND_TIMEOUT_S)

    def write(self, name: str, text: str) -> None:
        """A file that the document takes for there."""
        (self.folder / name).write_text(self.here(text))

    def close(self) -> None:
        """Devices end before the daemons that they borrow from."""
        for service in reversed(self.services.started):
            service.stop()


def donors(world: World, *addresses: str) -> None:
    """Memory daemons that ask nothing of this host."""
    for address in addresses:
        world.run(f"infiniswapd --memory 64MiB --headroom 0 --listen {address}")


def for_operating(world: World) -> None:
    """Three donors; a device of two of them with data that remembers each request, and one for swap."""
    donors(world, "node3", "10.0.0.5:7401", "node7")
    serve = "infiniswap device serve vol --slab-size 1MiB --size 64MiB --map eager --trace-slower-than 0"
    world.run(f"{serve} --backup /var/tmp/vol.img --peer node3 --peer 10.0.0.5:7401")
    with world.vol() as client:
        client.write(0, os.urandom(4 << 20))
        client.flush()
    world.write("etc/swap0.toml", 'size = "32MiB"\nbackup = "/var/tmp/swap0.img"\npeers = ["node3"]\n')
    world.run("infiniswap device serve swap0 --config /etc/infiniswap/swap0.toml")


def for_the_api(world: World) -> None:
    """A donor and a device of it."""
    donors(world, "127.0.0.1:7401")
    world.run("infiniswap device serve vol --size 32MiB --backup /var/tmp/vol.img --peer 127.0.0.1:7401")


def for_the_web(world: World) -> None:
    """A donor and the file of a device of it."""
    donors(world, "127.0.0.1:7411")
    world.write("vol.toml", 'size = "32MiB"\nbackup = "/var/tmp/vol.img"\npeers = ["127.0.0.1:7411"]\n')


BEFORE = {"operate.md": for_operating, "control-api.md": for_the_api, "web.md": for_the_web}
WITH_COMMANDS = [path for path in documents(ROOT) if any(not line.marked for line in commands(path))]


@pytest.fixture
def world(services: Services) -> Iterator[World]:
    """An empty one, in a folder with a short path."""
    world = World(services)
    yield world
    world.close()


@pytest.mark.timeout(paced(300))
@pytest.mark.parametrize("path", WITH_COMMANDS, ids=[path.name for path in WITH_COMMANDS])
def test_commands(world: World, path: Path) -> None:
    """All that are not marked, one after the other as they stand."""
    BEFORE.get(path.name, lambda _: None)(world)
    for line in commands(path):
        if line.marked or line.text in RUN_BY:
            continue
        try:
            world.run(line.text)
        except AssertionError as error:
            raise AssertionError(f"{path.name}:{line.at}: {error}") from None


def test_what_others_run() -> None:
    """Stands in a document, and where it is said to be run there is something."""
    said = {line.text for path in WITH_COMMANDS for line in commands(path)}
    assert said >= RUN_BY.keys()
    assert all((ROOT / place).exists() for place in RUN_BY.values())


def test_marks_tell_the_truth() -> None:
    """Each names what does it instead, which exists, or why nothing can; and not all are marked."""
    marked = [line for path in documents(ROOT) for line in commands(path) if line.marked]
    run = [line for path in documents(ROOT) for line in commands(path) if not line.marked]
    assert len(run) > len(marked) > 0
    for path in documents(ROOT):
        for text in re.findall(rf"^# {MARK}(.*)$", path.read_text(), re.MULTILINE):
            assert ": " in text, f"{path.name}: '# {MARK}{text}' gives no reason"
            for place in re.findall(r"tests/[\w/]+(?:\.py)?", text):
                assert (ROOT / place).exists(), place
            for scenario in re.findall(r"`([\w-]+)`", text):
                assert (ROOT / f"scripts/vm/scenarios/{scenario}.sh").exists(), scenario


def test_lines_are_found(tmp_path: Path) -> None:
    """Continued ones, here-documents, comments; a mark of a line, and of the rest of its block."""
    path = tmp_path / "d.md"
    block = "a \\\n    b   # c\ncat <<'E'\n# in it\nE\nd # (not run by a test)\n# not run by a test: so\ne\n"
    path.write_text(f"text\n\n```sh\n{block}```\n\n```sh\nf\n```\n")
    assert commands(path) == [
        Line("a b", 4, False),
        Line("cat <<'E'\n# in it\nE", 6, False),
        Line("d", 9, True),
        Line("e", 11, True),
        Line("f", 15, False),
    ]
