"""What a start makes of what it finds: stale data is never served without being asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from infiniswap.device.owner import Mark
from infiniswap.device.state import DamagedState, Header, Phase, Record
from infiniswap.device.verdict import Image, Now, Start, judge
from infiniswap.shared.errors import ExitCode, UserError

SIZE = 4 << 20
PATH = "/b.img"
CLEAN = Header(Phase.CLEAN, SIZE, 1 << 20, "this-boot", "device-1", "life-1", "life-0")
KILLED = replace(CLEAN, phase=Phase.IN_USE)
STARTING = replace(CLEAN, phase=Phase.STARTING)
NOW = Now(SIZE, 1 << 20, "this-boot", "host-1", "vol")
IN_USE = Mark("device-1", "this-boot", "host-1", "life-1", True, 0, "vol", "/state", "2026-01-01")
STOPPED = replace(IN_USE, in_use=False)
RECORD = Record("device-1", PATH, marked=True)
State = Header | DamagedState | None


def decide(state: State, mark: Mark | None, record: Record | None = RECORD, now: Now = NOW) -> Start:
    """For an image that is there."""
    return judge(state, record, Image(PATH, mark), now)


def refused(state: State, mark: Mark | None, words: str, record: Record | None = RECORD, now: Now = NOW) -> None:
    """Refused with the way out, which then forgets the state."""
    with pytest.raises(UserError, match=words) as caught:
        decide(state, mark, record, now)
    assert caught.value.code == ExitCode.REFUSED
    assert "--accept-backup" in str(caught.value)
    assert decide(state, mark, record, replace(now, accept=True)) is Start.FORGET


def test_new_device() -> None:
    """Nothing is known: the backup counts."""
    assert judge(None, None, None, NOW) is Start.FORGET
    assert decide(None, None, None) is Start.FORGET


def test_after_a_clean_stop() -> None:
    """The backup counts, but pages known to be lost stay lost; also when the mark did not come to say so."""
    assert decide(CLEAN, STOPPED) is Start.REBUILD
    assert decide(CLEAN, IN_USE) is Start.REBUILD
    assert decide(CLEAN, STOPPED, None) is Start.REBUILD, "the record is for people"


def test_clean_state_and_another_life_of_its_backup() -> None:
    """An old copy of either is not taken for the last one."""
    refused(CLEAN, replace(STOPPED, life="life-2"), "do not belong together")
    refused(CLEAN, replace(IN_USE, life="life-2"), "do not belong together")


def test_clean_state_and_another_backup() -> None:
    """Lost pages of one backup are not those of another; what an unmarked one holds is looked at elsewhere."""
    assert decide(CLEAN, None) is Start.FORGET
    assert judge(CLEAN, RECORD, None, NOW) is Start.FORGET
    assert decide(CLEAN, replace(STOPPED, device_id="device-2", life="x")) is Start.FORGET
    assert decide(replace(CLEAN, size_bytes=SIZE * 2), STOPPED) is Start.FORGET


def test_own_backup_is_elsewhere() -> None:
    """What was asked for is not it, or not there, and the one on record is whole: nothing else is served unawares."""
    record = replace(RECORD, backup="/new.img")
    now = replace(NOW, backup=PATH)
    stranger = replace(STOPPED, device_id="device-2", life="x")
    for image in (None, Image(PATH, None), Image(PATH, stranger)):
        for state, own in ((CLEAN, STOPPED), (STARTING, STOPPED), (STARTING, replace(STOPPED, life="life-0"))):
            with pytest.raises(UserError, match=r"is /new\.img: give --backup /new\.img --backup-layout raw") as caught:
                judge(state, record, image, now, own)
            assert caught.value.code == ExitCode.REFUSED
            assert judge(state, record, image, replace(now, accept=True), own) is Start.FORGET
    assert judge(CLEAN, record, Image(PATH, None), replace(now, adopt=True), STOPPED) is Start.FORGET
    assert judge(CLEAN, record, Image(PATH, STOPPED), now, STOPPED) is Start.REBUILD, "a copy with its mark"
    for other in (None, stranger, replace(STOPPED, life="life-7")):
        assert judge(CLEAN, record, None, now, other) is Start.FORGET
    shard = replace(now, name="vol~1")
    with pytest.raises(UserError, match=r"give --backup /new\.img --backup-layout raw once all shards have"):
        judge(CLEAN, replace(record, backup="/new.img~1"), None, shard, STOPPED)
    with pytest.raises(UserError, match=r"give the --backup whose ~1 leads there"):
        judge(CLEAN, replace(record, backup="/dev/loop1"), None, shard, STOPPED)


def test_killed_on_this_boot() -> None:
    """The state is newer than the backup, and is taken up; also when the record is lost."""
    assert decide(KILLED, IN_USE) is Start.RECOVER
    assert decide(KILLED, IN_USE, None) is Start.RECOVER


def test_killed_and_stopped_contradict_each_other() -> None:
    """The state says in use, the backup stopped: one of them is a copy from another time."""
    refused(KILLED, STOPPED, "last used otherwise")
    refused(KILLED, replace(IN_USE, life="life-0"), "last used otherwise")


def test_killed_while_starting() -> None:
    """Nothing was served: what was true before still is."""
    assert decide(STARTING, IN_USE) is Start.REBUILD
    assert decide(STARTING, replace(STOPPED, life="life-0")) is Start.REBUILD
    assert decide(STARTING, None) is Start.FORGET
    assert decide(replace(STARTING, previous=""), None) is Start.REBUILD
    refused(STARTING, replace(STOPPED, life="life-7"), "do not belong together")


def test_killed_before_another_boot() -> None:
    """The state may be half-written: the backup counts, where it is the state's own."""
    old = replace(KILLED, boot_id="old-boot")
    assert decide(old, replace(IN_USE, boot_id="old-boot")) is Start.REBUILD
    refused(old, None, "not the file")


def test_dirty_backup_without_its_state() -> None:
    """Newer pages may be elsewhere: whose, since when and where their state is, is said."""
    refused(None, IN_USE, "device 'vol' since 2026-01-01, state directory /state, boot this-boot")
    refused(DamagedState("torn"), IN_USE, "state file is damaged: torn")
    for state in (KILLED, CLEAN, STARTING):
        refused(state, replace(IN_USE, device_id="device-2"), "was not closed in order")


def test_dirty_backup_without_its_state_after_another_boot() -> None:
    """A state directory in memory is gone with the boot: the backup counts, on the host that wrote it alone."""
    old = replace(IN_USE, boot_id="old-boot")
    assert decide(None, old) is Start.FORGET
    assert decide(replace(STARTING, device_id="device-3"), old) is Start.FORGET, "a start that was killed said the same"
    refused(None, old, "was not closed in order", now=replace(NOW, host_id="host-2"))
    refused(None, old, "was not closed in order", now=replace(NOW, name="other"))
    refused(None, replace(old, host_id=""), "was not closed in order", now=replace(NOW, host_id=""))


def test_orderly_closed_backup_without_its_state() -> None:
    """Everything is on it, unless pages were lost or it is another device's."""
    assert decide(None, STOPPED, None) is Start.FORGET
    assert decide(DamagedState("torn"), STOPPED) is Start.FORGET
    refused(None, replace(STOPPED, lost=3), "behind in 3 pages")
    with pytest.raises(UserError, match=r"belongs to device 'vol'.*--adopt-image"):
        decide(None, STOPPED, None, replace(NOW, name="two"))
    assert decide(None, STOPPED, None, replace(NOW, name="two", adopt=True)) is Start.FORGET


def test_backup_of_a_device_that_is_kept() -> None:
    """It has an owner who will want it: adoption is the last that is offered, and after that one is gone."""
    for name, whole in (("vol", "vol"), ("vol~1", "vol")):
        image = Image(PATH, replace(STOPPED, name=name), kept=True)
        with pytest.raises(UserError, match=f"of its own; .*device rm {whole}'.*--adopt-image then serves"):
            judge(None, None, image, replace(NOW, name="two"))
        assert judge(None, None, image, replace(NOW, name="two", adopt=True)) is Start.FORGET


@pytest.mark.parametrize("mark", [STOPPED, IN_USE])
@pytest.mark.parametrize("state", [None, CLEAN, KILLED, DamagedState("torn")])
@pytest.mark.parametrize("way", ["adopt", "accept", "kept"])
def test_swapped_backups_of_shards(state: State, mark: Mark, way: str) -> None:
    """A part is never served at the place of another, whatever is given; swapped back it is."""
    for name in ("vol~1", "new~1"):
        now = replace(NOW, name=name, adopt=way == "adopt", accept=way == "accept")
        image = Image(PATH, replace(mark, name="vol~0", device_id="device-2"), kept=way == "kept")
        with pytest.raises(UserError, match=f"that of 'vol~0' and not of '{name}'.*swap the files") as caught:
            judge(state, RECORD, image, now)
        assert caught.value.code == ExitCode.REFUSED
        assert "--a" not in str(caught.value)
    now = replace(NOW, name="new~0", adopt=True)
    assert judge(None, None, Image(PATH, replace(STOPPED, name="vol~0")), now) is Start.FORGET


def test_adopting_is_not_accepting() -> None:
    """It says nothing about newer pages elsewhere."""
    with pytest.raises(UserError, match="was not closed in order"):
        decide(None, IN_USE, None, replace(NOW, adopt=True))
    with pytest.raises(UserError, match="not the file"):
        decide(KILLED, None, now=replace(NOW, adopt=True))


def test_dirty_state_without_its_backup() -> None:
    """Creating a new one would lose the old pages, whether or not it is known where they are."""
    for record, words in ((RECORD, "its backup is /b.img"), (None, "a new backup is not the one")):
        with pytest.raises(UserError, match=words):
            judge(KILLED, record, None, NOW)
    refused(KILLED, None, "its backup is /elsewhere", replace(RECORD, backup="/elsewhere"))
    refused(KILLED, None, "is not the file this device was using")
    refused(KILLED, replace(STOPPED, device_id="device-2"), "last used otherwise")


def test_damaged_state_and_an_unmarked_backup() -> None:
    """It may have been about another one."""
    refused(DamagedState("torn"), None, "state file is damaged")


def test_dirty_state_with_other_sizes() -> None:
    """Pages would be somewhere else."""
    refused(replace(KILLED, slab_bytes=2 << 20), IN_USE, "--slab-size 2097152")
    refused(replace(KILLED, size_bytes=2 * SIZE), IN_USE, f"--size {2 * SIZE}")


def test_version_1() -> None:
    """Had marks only while in use, none on block devices, and no lives: what it left is understood."""
    clean = replace(CLEAN, life="", previous="", checksum_seed=b"")
    killed = replace(clean, phase=Phase.IN_USE)
    mark = Mark("device-1", "this-boot", "host-1")
    assert decide(clean, None) is Start.REBUILD
    assert decide(clean, None, None) is Start.FORGET
    assert decide(clean, mark) is Start.REBUILD
    assert decide(CLEAN, mark) is Start.REBUILD, "stopped in order by this version, its mark not written yet"
    rebooted = replace(NOW, boot_id="next-boot")
    assert decide(killed, mark, now=rebooted) is Start.REBUILD
    assert decide(killed, None, replace(RECORD, marked=False), rebooted) is Start.REBUILD
    refused(killed, None, "is not the file")
    refused(killed, None, "is not the file", None)


def test_checksums_without_a_key() -> None:
    """A killed device of versions 1 to 3 cannot be taken up; after a reboot or an orderly stop its backup counts."""
    killed = replace(KILLED, checksum_seed=b"")
    refused(killed, IN_USE, "an earlier version of this program")
    assert decide(killed, IN_USE, now=replace(NOW, boot_id="next-boot")) is Start.REBUILD
    assert decide(replace(CLEAN, checksum_seed=b""), replace(IN_USE, in_use=False)) is Start.REBUILD
    assert decide(KILLED, IN_USE) is Start.RECOVER
