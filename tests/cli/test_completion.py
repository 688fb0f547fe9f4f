"""TAB in a real bash completes verbs, devices, columns, files and peers' addresses; fish and zsh take their scripts."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infiniswap.cli import completion
from infiniswap.cli.slabs import command as slabs
from scripts.packaging.completion import main
from tests.support.fake_control import FakeControl
from tests.support.pace import paced

PROMPT = "ready>"
TAB_TIMEOUT_S = paced(30.0)
TIMEOUT_S = paced(60.0)


class Bash:
    """An interactive bash on a terminal of its own."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], environment)
        self._said = ""

    def wait_for(self, wanted: str) -> str:
        """What it shows up to these words, a regular expression."""
        limit = time.monotonic() + TAB_TIMEOUT_S
        while (found := re.search(wanted, self._said)) is None:
            assert time.monotonic() < limit, f"no {wanted!r} in {self._said!r}"
            if select.select([self._terminal], [], [], 0.5)[0]:
                self._said += os.read(self._terminal, 65536).decode(errors="replace")
        before, self._said = self._said[: found.end()], self._said[found.end() :]
        return before

    def type(self, keys: str) -> None:
        """As somebody types."""
        os.write(self._terminal, keys.encode())

    def close(self) -> None:
        """End it."""
        os.close(self._terminal)
        os.waitpid(self.pid, 0)


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts that are packaged."""
    folder = tmp_path_factory.mktemp("completion")
    assert main([str(folder)]) == 0
    return folder


@pytest.fixture
def environment(short_path: Path) -> dict[str, str]:
    """Devices, files and commands of this test alone."""
    (short_path / "bin").mkdir()
    for name in ("infiniswap", "infiniswapd"):
        module = "infiniswap.cli.main" if name == "infiniswap" else "infiniswap.daemon.main"
        script = short_path / "bin" / name
        script.write_text(
            f"#!{sys.executable}\nimport sys\nsys.argv[0] = '{name}'\nfrom {module} import main\nmain()\n"
        )
        script.chmod(0o755)
    return {
        "PATH": f"{short_path / 'bin'}:/usr/bin:/bin",
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "HOME": str(short_path),
        "LC_ALL": "C.UTF-8",
        "TERM": "dumb",
        "PS1": PROMPT,
        "INFINISWAP_RUNTIME_DIR": str(short_path / "run"),
        "INFINISWAP_STATE_DIR": str(short_path / "state"),
    }


@pytest.fixture(params=[True, False], ids=["with-bash-completion", "without"])
def bash(request: pytest.FixtureRequest, scripts: Path, environment: dict[str, str]) -> Iterator[Bash]:
    """A bash that has the scripts; Debian's package bash-completion helps where it is installed."""
    shell = Bash(environment)
    shell.wait_for(PROMPT)
    before = "source /usr/share/bash-completion/bash_completion; " if request.param else ""
    # Not from where it could stand already.
    shell.type(
        f"{before}bind 'set bell-style none'; for s in {scripts}/bash-completion/completions/*; do source $s; done\n"
    )
    shell.wait_for(PROMPT + "$")
    yield shell
    shell.close()


def test_in_bash(bash: Bash, short_path: Path) -> None:
    """Verbs, remembered devices, columns after a comma, and files, after a space and after =."""
    (short_path / "state/volume7").mkdir(parents=True)
    (short_path / "some-image.img").touch()
    for typed, completed in (
        ("infiniswap sl", "abs "),
        ("infiniswap device ser", "ve "),
        ("infiniswap slabs vol", "ume7 "),
        ("infiniswap slabs -o INDEX,PEE", "R"),
        (f"infiniswap device serve x --backup {short_path}/some-i", "mage.img "),
        (f"infiniswap device serve x --backup={short_path}/some-i", "mage.img "),
        (f"infiniswap device serve x --state-dir {short_path}/sta", "te/"),
        (f"infiniswapd --config {short_path}/some-i", "mage.img "),
    ):
        bash.type(f"{typed}\t")
        bash.wait_for(re.escape(typed + completed))
        bash.type("\x15")  # the line is thrown away


def complete(environment: dict[str, str], *words: str) -> list[str]:
    """What the command answers to click's script, without kinds and explanations."""
    done = subprocess.run(
        ["infiniswap"],
        env={
            **environment,
            "_INFINISWAP_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(["infiniswap", *words]),
            "COMP_CWORD": str(len(words)),
        },
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        executable=f"{environment['PATH'].partition(':')[0]}/infiniswap",
    )
    assert done.stderr == "", done.stdout
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


def test_peers_of_running_devices(environment: dict[str, str], short_path: Path) -> None:
    """Their addresses, wherever one is wanted; a device that does not answer costs nothing."""
    run = short_path / "run"
    run.mkdir()
    with FakeControl(run, "vol"):
        (run / "gone.control").touch()
        assert complete(environment, "donor", "status", "127") == ["127.0.0.1:7401", "127.0.0.1:7402"]
        assert complete(environment, "device", "serve", "x", "--peer", "127.0.0.1:7402") == ["127.0.0.1:7402"]
        assert complete(environment, "slabs", "") == ["gone", "vol"]


def test_names(tmp_path: Path) -> None:
    """Running ones first, then those with a state, then those with a file; the daemon's own file is none."""
    for path in ("run/a.control", "etc/c.toml", "etc/infiniswapd.toml", "etc/a.toml", "state/b/x", "state/.backups/x"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    found = completion.names_of(tmp_path / "run", [tmp_path / "state", tmp_path / "none"], tmp_path / "etc")
    assert found == {"a": "runs", "b": "remembered", "c": "configured"}


def test_columns() -> None:
    """The last word after a comma; what is there already is not offered again; + stays."""
    offered = [str(item.value) for item in completion.columns(slabs, "")]
    assert {"INDEX", "PEER"} <= set(offered)
    assert [item.value for item in completion.columns(slabs, "index,PE")] == ["index,PEER", "index,PENDING"]
    assert [item.value for item in completion.columns(slabs, "+PAGEI")] == ["+PAGEINS"]
    assert "INDEX,INDEX" not in [item.value for item in completion.columns(slabs, "INDEX,")]


def test_in_fish(scripts: Path, environment: dict[str, str]) -> None:
    """Fish itself completes a verb."""
    script = scripts / "fish/vendor_completions.d/infiniswap.fish"
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"source {script}; complete -C 'infiniswap sla'"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert "slabs" in done.stdout, done.stderr


def test_in_zsh(scripts: Path, environment: dict[str, str]) -> None:
    """Zsh's own completion system takes the script for the command."""
    folders = f"fpath=({scripts}/zsh/vendor-completions $fpath)"
    asked = f"{folders}; autoload -U compinit; compinit -u -D; print $_comps[infiniswap]"
    done = subprocess.run(
        ["zsh", "-f", "-c", asked], env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert "infiniswap" in done.stdout, done.stderr
