"""The file of seals: new with each state file, taken up only whole and with its own key; recovery reads by it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from infiniswap.device import seals as seals_module
from infiniswap.device.config import DeviceConfig, load_config
from infiniswap.device.root_key import KEY_BYTES
from infiniswap.device.seals import Kept, Seals, SealsHeader, make_seals, open_seals, plan_sealing
from infiniswap.device.state import Header, Phase, StateDirectory, StateFile
from infiniswap.device.verdict import Start
from infiniswap.engine.binding import PAGE_BYTES
from infiniswap.engine.sealer import Sealer, seals_layout
from infiniswap.shared.errors import UserError

SIZE = 1 << 20
OLD, NEW, TORN = b"o" * PAGE_BYTES, b"n" * PAGE_BYTES, b"n" * 100 + b"o" * (PAGE_BYTES - 100)
HEADER = Header(Phase.IN_USE, SIZE, 1 << 20, "boot", "device", life="life", sealed=True)

Configure = Callable[..., DeviceConfig]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A device's state directory."""
    path = tmp_path / "vol"
    path.mkdir()
    return path


@pytest.fixture
def configure(tmp_path: Path) -> Configure:
    """A device that seals, with a key file or without."""

    def configured(key: bytes | None = None) -> DeviceConfig:
        given: dict[str, object] = {"size": SIZE, "backup": str(tmp_path / "b"), "encrypt": True}
        if key is not None:
            path = tmp_path / "root.key"
            path.write_bytes(key)
            path.chmod(0o600)
            given["encrypt_key_file"] = str(path)
        return load_config("vol", given)

    return configured


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateFile]:
    """The state file that the seals belong to."""
    state = StateDirectory(tmp_path / "vol").create(HEADER, [], keep_lost=False)
    yield state
    state.close()


def keep_in_memory(monkeypatch: pytest.MonkeyPatch, kept: bool) -> None:
    """Whether the state directory counts as memory."""
    monkeypatch.setattr(seals_module, "is_in_memory", lambda _path: kept)


def first_life(config: DeviceConfig, folder: Path, state: StateFile) -> Seals:
    """Seals as a first start makes them."""
    plan = plan_sealing(config, folder, None, Start.FORGET)
    assert plan is not None
    assert plan.past is None
    return make_seals(plan, state, SIZE)


def test_off_means_off(configure: Configure, folder: Path) -> None:
    """Without --encrypt nothing is looked for."""
    assert plan_sealing(replace(configure(), encrypt=False), folder, HEADER, Start.RECOVER) is None


def test_key_file_opens_again(configure: Configure, folder: Path, state: StateFile) -> None:
    """A recovery with the same file goes on with the same salt, serial and keys."""
    seals = first_life(configure(b"k" * KEY_BYTES), folder, state)
    assert seals.header.kept is Kept.FILE
    assert not (folder / "key").exists()
    seals.pages["serial"][3] = (7, 0)
    seals.close()
    plan = plan_sealing(configure(b"k" * KEY_BYTES), folder, HEADER, Start.RECOVER)
    assert plan is not None
    assert plan.past is not None
    assert not plan.lost
    again = open_seals(plan, plan.past)
    assert again.header == seals.header
    assert again.pages["serial"][3][0] == 7
    again.close()
    assert plan.key == bytes(KEY_BYTES)  # wiped


def test_each_life_has_new_keys(configure: Configure, folder: Path, state: StateFile) -> None:
    """The same key file and a new state: another salt, so no nonce of before can meet the same key."""
    one = first_life(configure(b"k" * KEY_BYTES), folder, state)
    one.close()
    other = first_life(configure(b"k" * KEY_BYTES), folder, state)
    other.close()
    assert one.header.salt != other.header.salt
    assert one.header.check != other.header.check


def test_wrong_or_missing_key_is_refused(configure: Configure, folder: Path, state: StateFile) -> None:
    """Another key, or none where there was a file: one line, and not a byte has changed."""
    first_life(configure(b"k" * KEY_BYTES), folder, state).close()
    before = (folder / "seals").read_bytes()
    with pytest.raises(UserError, match=r"root\.key is not the one that this device's pages"):
        plan_sealing(configure(b"x" * KEY_BYTES), folder, HEADER, Start.RECOVER)
    with pytest.raises(UserError, match="give that with --encrypt-key-file"):
        plan_sealing(configure(), folder, HEADER, Start.RECOVER)
    assert (folder / "seals").read_bytes() == before


def test_memory_keeps_the_key(
    configure: Configure, folder: Path, state: StateFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a state directory that is memory the key outlives a crash, and goes at an orderly stop."""
    keep_in_memory(monkeypatch, True)
    seals = first_life(configure(), folder, state)
    key = bytes(seals.key)
    seals.close()
    plan = plan_sealing(configure(), folder, HEADER, Start.RECOVER)
    assert plan is not None
    assert plan.past is not None
    assert plan.key == key
    assert (folder / "key").stat().st_mode & 0o777 == 0o600
    again = open_seals(plan, plan.past)
    again.forget_key()
    again.close()
    assert not (folder / "key").exists()


def test_by_itself_only_with_a_place_for_the_key(
    configure: Configure, folder: Path, state: StateFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody asked for it, and a crash would lose the key: refused with the ways out, before there is anything."""
    keep_in_memory(monkeypatch, False)
    for start, nowhere in ((Start.FORGET, folder / "deeper"), (Start.REBUILD, folder)):
        with pytest.raises(UserError) as caught:
            plan_sealing(configure(), nowhere, None, start, by_default=True)
        for way in ("--encrypt-key-file", "--state-dir", "--no-encrypt"):
            assert way in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not list(folder.glob("*seals*"))
    assert plan_sealing(configure(), folder, None, Start.FORGET) is not None
    first_life(configure(), folder, state).close()
    with pytest.raises(UserError, match="--no-encrypt"):  # after a crash of one that was asked for
        plan_sealing(configure(), folder, HEADER, Start.RECOVER, by_default=True)
    keep_in_memory(monkeypatch, True)
    plan = plan_sealing(configure(), folder / "deeper", None, Start.FORGET, by_default=True)
    assert plan is not None


def test_a_disk_does_not(
    configure: Configure,
    folder: Path,
    state: StateFile,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """On a disk no key is written; the user hears what that means, and after a crash that it came so."""
    keep_in_memory(monkeypatch, False)
    with caplog.at_level(logging.WARNING):
        seals = first_life(configure(), folder, state)
    key = bytes(seals.key)
    seals.close()
    assert "--encrypt-key-file keeps it" in caplog.text
    assert key not in b"".join(path.read_bytes() for path in folder.iterdir())
    for given in (None, b"k" * KEY_BYTES):
        plan = plan_sealing(configure(given), folder, HEADER, Start.RECOVER)
        assert plan is not None
        assert plan.lost
        assert plan.past is None
    assert "ended with the process that had it" in caplog.text


@pytest.mark.parametrize("harm", ["missing", "cut", "flipped", "another life", "another version"])
def test_damaged_seals_are_refused(configure: Configure, folder: Path, state: StateFile, harm: str) -> None:
    """A file of seals that is not whole, or another state's, is not guessed with."""
    first_life(configure(b"k" * KEY_BYTES), folder, state).close()
    path, header = folder / "seals", HEADER
    raw = bytearray(path.read_bytes())
    if harm == "cut":
        del raw[-PAGE_BYTES:]
    elif harm == "flipped":
        raw[70] ^= 1
    elif harm == "another version":
        raw[8] = 9
    elif harm == "another life":
        header = replace(HEADER, life="other")
    path.write_bytes(raw)
    if harm == "missing":
        path.unlink()
    with pytest.raises(UserError, match="cannot be opened, is of no use"):
        plan_sealing(configure(b"k" * KEY_BYTES), folder, header, Start.RECOVER)


def test_header_is_the_engines(configure: Configure, folder: Path, state: StateFile) -> None:
    """The serial lies where the engine keeps it, zero at first, and the file has the engine's length."""
    seals = first_life(configure(b"k" * KEY_BYTES), folder, state)
    raw = (folder / "seals").read_bytes()
    assert len(raw) == seals_layout(SIZE).total_bytes
    assert len(seals.header.pack()) == 128
    assert raw[120:128] == bytes(8)
    assert SealsHeader.parse(raw[:128], len(raw)) == seals.header
    seals.close()


def test_half_written_pages_are_read_by_their_seals(configure: Configure, folder: Path, state: StateFile) -> None:
    """The old version opens by the page's seal, the new one by the intent's, which becomes the page's; else nothing."""
    seals = first_life(configure(b"k" * KEY_BYTES), folder, state)
    sealer = Sealer(seals.key, seals.header.salt)
    old, old_tag = sealer.seal(5, 1, OLD)
    new, new_tag = sealer.seal(5, 1 << 32, NEW)
    seals.pages[5] = ((1, 0), tuple(old_tag))
    state.intents[2]["first_page"], state.intents[2]["pages"] = 4, 2
    seals.intents[2, 1] = ((0, 1), tuple(new_tag))
    read_as = seals.reader(state)
    assert read_as(5, memoryview(old)) == state.checksum(OLD)
    assert read_as(4, memoryview(old)) is None
    assert read_as(5, memoryview(TORN)) is None
    assert seals.pages["serial"][5].tolist() == [1, 0]
    assert read_as(5, memoryview(new)) == state.checksum(NEW)
    assert seals.pages["serial"][5].tolist() == [0, 1]
    assert read_as(5, memoryview(old)) is None  # an older version is none any more
    sealer.close()
    seals.close()
