"""Where a program looks for a certificate by itself: root in /etc, others at home first; and who may read a key."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from infiniswap.identity.files import HOST_CERT, HOST_KEY, find_identity, how_to_get_one, usual_folder, write_file
from infiniswap.shared import paths
from infiniswap.shared.errors import UserError

ROOT, SOMEBODY = 0, 4711


class World:
    """A host with /etc and homes of its own, and whoever asks."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.etc, self.home = folder / "etc/infiniswap", folder / "home"
        self._monkeypatch = monkeypatch
        monkeypatch.delenv("INFINISWAP_TLS_DIR")
        monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
        monkeypatch.setenv("HOME", str(self.home))
        monkeypatch.setattr(paths, "config_dir", lambda: self.etc)

    def user(self, number: int, *hidden: Path) -> None:
        """It is this user who asks, and what is below hidden he cannot read."""
        self._monkeypatch.setattr(os, "geteuid", lambda: number)
        real = os.access
        self._monkeypatch.setattr(
            os, "access", lambda path, mode: not any(h in Path(path).parents for h in hidden) and real(path, mode)
        )

    @staticmethod
    def certificate(folder: Path) -> Path:
        """One, in there."""
        folder.mkdir(parents=True)
        for name in (HOST_CERT, HOST_KEY):
            (folder / name).write_text("x")
        return folder


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Nobody has a certificate yet."""
    return World(tmp_path, monkeypatch)


def test_root(world: World) -> None:
    """The host's own; nobody's home is looked into."""
    world.user(ROOT)
    World.certificate(world.home / ".config/infiniswap/tls")
    assert usual_folder() is None
    assert usual_folder() != World.certificate(world.etc / "tls") == usual_folder()


def test_another_user(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """His own first, wherever XDG has it, then the host's if he can read its key; without either he is told why."""
    world.user(SOMEBODY)
    assert usual_folder() is None
    assert "infiniswap cluster invite" in how_to_get_one()
    host = World.certificate(world.etc / "tls")
    assert usual_folder() == host
    world.user(SOMEBODY, host)
    assert usual_folder() is None
    assert how_to_get_one() == f"this user can read none in {host} (the key may be its group's: mode 0640)"
    own = World.certificate(world.home / ".config/infiniswap/tls")
    assert usual_folder() == own
    monkeypatch.setenv("XDG_CONFIG_HOME", str(world.home / "else"))
    assert usual_folder() is None
    assert usual_folder() != World.certificate(world.home / "else/infiniswap/tls") == usual_folder()


def test_the_environment(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names another folder, also one that is not there, which is an error then; or none."""
    world.user(ROOT)
    World.certificate(world.etc / "tls")
    monkeypatch.setenv("INFINISWAP_TLS_DIR", "/nowhere")
    assert usual_folder() == Path("/nowhere")
    monkeypatch.setenv("INFINISWAP_TLS_DIR", "none")
    assert usual_folder() is None


def test_options_come_first(world: World) -> None:
    """The usual folder is for who says nothing; --insecure beside options for certificates is a mistake."""
    world.user(ROOT)
    usual = World.certificate(world.etc / "tls")

    def found(**fields: object) -> object:
        find_identity(fields)
        return fields.get("tls_dir")

    assert found() == usual
    assert found(tls_dir=Path("/x")) == Path("/x")
    assert found(tls_cert=Path("/x")) is None
    assert found(insecure=True) is None
    with pytest.raises(UserError, match="--insecure is for a program without certificates, and --tls-cert is given"):
        found(insecure=True, tls_cert=Path("/x"))


def test_a_renewed_key_stays_readable(tmp_path: Path) -> None:
    """For its group where that could read the one before, which is how the daemon's user does; for nobody else."""
    key = tmp_path / "host.key"
    write_file(key, b"1", secret=True)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    group = next((each for each in os.getgroups() if each != os.getegid()), os.getegid())
    if os.geteuid() == ROOT:
        group = SOMEBODY
    os.chown(key, -1, group)
    key.chmod(0o640)
    write_file(key, b"2", secret=True)
    status = key.stat()
    assert (key.read_bytes(), stat.S_IMODE(status.st_mode), status.st_gid) == (b"2", 0o640, group)
    key.chmod(0o600)
    write_file(key, b"3", secret=True)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
