"""Without a certificate a device reaches this host alone, whatever it is told and whenever; --insecure frees it."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from infiniswap.device import reach as reach_module
from infiniswap.device.config import DeviceConfig, load_config
from infiniswap.device.daemon_client import DaemonClient, HeldLease, PeerError, make_session
from infiniswap.device.reach import Reach, reach_of, settle_sealing
from infiniswap.device.state import Header, Phase
from infiniswap.shared.address import HostPort
from infiniswap.shared.errors import ExitCode, UserError

FAR, NEAR = HostPort("192.0.2.1", 7401), HostPort("127.0.0.1", 7401)
NAMES = {
    "here": {"127.0.0.1", "::1"},
    "there": {"192.0.2.1"},
    "both": {"127.0.0.1", "192.0.2.1"},
}


@pytest.fixture(autouse=True)
def _names(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name service."""

    async def known(peers: object) -> dict[HostPort, frozenset[tuple[str, int]]]:
        return {
            peer: frozenset((host, peer.port) for host in NAMES[peer.host])
            for peer in peers  # type: ignore[attr-defined]
            if peer.host in NAMES
        }

    monkeypatch.setattr(reach_module, "known_addresses", known)


def device(tmp_path: Path, *peers: str, **more: object) -> DeviceConfig:
    """One with these peers."""
    return load_config("vol", {"size": "1MiB", "backup": str(tmp_path / "b"), "peers": list(peers), **more})


@pytest.mark.parametrize("peer", ["192.0.2.1", "[2001:db8::1]", "there", "both", "[fe80::1%lo]", "0.0.0.0"])
async def test_peers_beyond_this_host(tmp_path: Path, peer: str) -> None:
    """One of them ends the start, in a line that names it and the ways out."""
    with pytest.raises(
        UserError, match=r"is not on this host.*'infiniswap cluster invite HOST'.*or give --insecure"
    ) as caught:
        await reach_of(device(tmp_path, "127.0.0.1", peer))
    assert caught.value.code is ExitCode.REFUSED
    assert "\n" not in str(caught.value)
    assert await reach_of(device(tmp_path, "127.0.0.1", peer, insecure=True)) == Reach(far=True)
    assert await reach_of(device(tmp_path, "127.0.0.1", peer, tls_dir="/elsewhere")) == Reach(far=True)


@pytest.mark.parametrize("peer", ["127.3.2.1", "[::1]", "[::ffff:127.0.0.1]", "here", "unknown"])
async def test_peers_on_this_host(tmp_path: Path, peer: str) -> None:
    """They need nothing, and neither does a name that nobody knows yet: it is looked at when it comes."""
    assert (await reach_of(device(tmp_path, peer))).local_only is not None


async def test_later_ones(tmp_path: Path) -> None:
    """What comes while the device serves is refused by address or by what its name is known as."""
    reach = await reach_of(device(tmp_path))
    reach.refuse(NEAR)
    reach.refuse(HostPort("here", 7401), NAMES["here"])
    reach.refuse(HostPort("unknown", 7401))
    for address, hosts in ((FAR, ()), (HostPort("both", 7401), NAMES["both"])):
        with pytest.raises(UserError, match=rf"peer {address} is not on this host"):
            reach.refuse(address, hosts)
    Reach().refuse(FAR)


async def test_the_client_sends_nothing_there() -> None:
    """No call goes beyond this host, and a lease whose pages are to go there is not taken."""
    async with make_session() as session:

        def client(address: HostPort) -> DaemonClient:
            return DaemonClient(
                session,
                address,
                device="vol",
                device_id="",
                size_bytes=1 << 20,
                slab_bytes=1 << 20,
                timeout_s=0.5,
                clock=time.monotonic,
                local_only="is not on this host",
            )

        lease = HeldLease("1", "token", "export", ("127.0.0.1", 1), "i", 1.0, 1 << 20, [0.0])
        with pytest.raises(PeerError, match=r"^it is not on this host"):
            await client(FAR).offer()
        with pytest.raises(PeerError, match=r"^it is not on this host"):
            await client(FAR).open_stream(lease)
        with pytest.raises(PeerError, match=r"^it is not on this host"):
            await client(NEAR)._page_address(("192.0.2.1", 7402), "127.0.0.1")


IN_USE = Header(Phase.IN_USE, 1 << 20, 1 << 20, "boot", "device", life="life")
FURTHER = {"insecure": True}  # as with a certificate, which would have to be there


async def settled(tmp_path: Path, header: Header | None, *peers: str, **more: object) -> tuple[bool | None, Reach]:
    """Whether such a device seals its pages, and how far it reaches then."""
    config = device(tmp_path, *peers, **more)
    config, reach = settle_sealing(config, await reach_of(config), header)
    return config.encrypt, reach


@pytest.mark.parametrize("peer", ["192.0.2.1", "there", "both", "unknown"])
async def test_pages_that_leave_this_host_are_sealed(tmp_path: Path, peer: str) -> None:
    """Where a peer is beyond it, or may be, and nobody says anything; else as he says."""
    assert await settled(tmp_path, None, "127.0.0.1", peer, **FURTHER) == (True, Reach(far=True))
    assert (await settled(tmp_path, None, peer, encrypt=False, **FURTHER))[0] is False


@pytest.mark.parametrize("more", [{"discover_file": "/x"}, {"discover_dns": "example.net"}])
async def test_discovery_may_name_anybody(tmp_path: Path, more: dict[str, object]) -> None:
    """So pages are sealed beforehand, unless the device reaches nobody else anyway."""
    assert (await settled(tmp_path, None, **more, **FURTHER))[0] is True
    assert (await settled(tmp_path, None, **more))[0] is False


async def test_pages_that_stay_here(tmp_path: Path) -> None:
    """They are as they are, and a peer elsewhere is no peer then; a key file or --encrypt says otherwise."""
    sealed, reach = await settled(tmp_path, None, "127.0.0.1", "here", **FURTHER)
    assert sealed is False
    with pytest.raises(UserError, match="is not on this host, and pages are not sealed") as caught:
        reach.refuse(FAR)
    assert "--no-encrypt" in str(caught.value)
    for said in ({"encrypt": True}, {"encrypt_key_file": "/x"}):
        sealed, reach = await settled(tmp_path, None, "127.0.0.1", **said, **FURTHER)
        assert sealed is True
        reach.refuse(FAR)
    sealed, reach = await settled(tmp_path, None, "127.0.0.1", encrypt=False, **FURTHER)
    assert sealed is False
    reach.refuse(FAR)  # for he has said so


@pytest.mark.parametrize("before", [False, True])
async def test_a_recovery_goes_on_sealed(tmp_path: Path, before: bool) -> None:
    """Its peers may be other ones by now, and pages at those from before are sealed; a state in order says nothing."""
    header = replace(IN_USE, sealed=before)
    assert (await settled(tmp_path, header, "127.0.0.1", **FURTHER))[0] is before
    assert (await settled(tmp_path, replace(header, phase=Phase.CLEAN), "127.0.0.1", **FURTHER))[0] is False
