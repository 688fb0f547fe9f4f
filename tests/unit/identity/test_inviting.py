"""An invitation lets one host in, with its own key and no name but its own; whoever else comes gets nothing."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import ssl
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from infiniswap.cli import main as cli_main
from infiniswap.identity import inviting, joining
from infiniswap.identity.authority import Authority
from infiniswap.identity.certificates import describe, read_certificate, read_revoked
from infiniswap.identity.files import CA_CERT, CA_KEY, CRL, HOST_CERT, HOST_KEY, TlsPaths, write_file
from infiniswap.identity.identity import Identity, utc_now
from infiniswap.identity.invitation import NETWORK_TRIES_MAX, TRIES_MAX, Invitation, Tries
from infiniswap.identity.inviting import Inviting
from infiniswap.identity.join_code import JoinCode
from infiniswap.identity.joining import JoinClient
from infiniswap.identity.requests import make_request, new_key
from infiniswap.nbd.listener import open_tcp_socket
from infiniswap.shared.address import HostPort
from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.http_server import HttpServer
from tests.support.certificates import Cluster, paths
from tests.support.pace import paced

HOST = Invitation("node2")


@dataclass
class World:
    """An invitation that is open."""

    authority: Authority
    address: HostPort
    code: JoinCode
    over: asyncio.Task[str]
    folder: Path  # of the host that joins

    def join(self, *more: str, code: JoinCode | None = None, name: str = "node2") -> int:
        """The command's exit code."""
        arguments = [str(self.address), (code or self.code).text, "--name", name, "--directory", str(self.folder)]
        return cli_main.run(["cluster", "join", *arguments, *more])

    async def joins(self, *more: str, code: JoinCode | None = None, name: str = "node2") -> int:
        """The same, while the invitation is served."""
        return await asyncio.to_thread(self.join, *more, code=code, name=name)

    def request(self, name: str = "node2") -> bytes:
        """As the command sends it."""
        return make_request([name], new_key())

    async def refusal(self) -> UserError:
        """With what the invitation ended."""
        with pytest.raises(UserError) as caught:
            await self.over
        return caught.value

    def is_untouched(self) -> bool:
        """Nothing was written for the host that was to join."""
        return list(self.folder.parent.iterdir()) == []


@asynccontextmanager
async def open_world(
    folder: Path, invitation: Invitation = HOST, valid_s: float = 60.0, now: Callable[[], datetime] = utc_now
) -> AsyncIterator[World]:
    """At 127.0.0.1."""
    (folder / "there").mkdir()
    authority = Authority.create(folder / "authority", "cluster", now())
    opened = Inviting(authority, invitation, now)
    listening = open_tcp_socket("127.0.0.1", 0)
    address = HostPort("127.0.0.1", listening.getsockname()[1])
    over = asyncio.create_task(opened.wait(listening, valid_s))
    try:
        yield World(authority, address, opened.code, over, folder / "there" / "tls")
    finally:
        over.cancel()
        await asyncio.wait([over])


def test_a_host_joins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It has all that it needs, with a key that the authority never had, and is then in the ledger and let in."""

    async def scenario() -> None:
        async with open_world(tmp_path, Invitation("node2", ("10.9.0.2",), 20)) as world:
            assert await world.joins() == ExitCode.OK
            assert (await world.over).startswith("node2 has joined from 127.0.0.1, for node2, ")
            own = Identity(TlsPaths.of_folder(world.folder)).own
            assert (own.subject, own.issuer) == ("node2", "cluster")
            assert set(own.names) == {"node2", "10.9.0.2", "localhost", "127.0.0.1", "::1"}
            assert own.not_after - utc_now() < timedelta(days=21)
            assert [(entry.host, entry.serial) for entry in world.authority.ledger()] == [("node2", own.serial)]

    asyncio.run(scenario())
    there, here = tmp_path / "there" / "tls", tmp_path / "authority"
    assert sorted(path.name for path in there.iterdir()) == sorted((CA_CERT, CRL, HOST_CERT, HOST_KEY))
    assert stat.S_IMODE((there / HOST_KEY).stat().st_mode) == 0o600
    assert stat.S_IMODE(there.stat().st_mode) == 0o700
    key = (there / HOST_KEY).read_bytes()
    assert not [path for path in here.rglob("*") if path.is_file() and key in path.read_bytes()]
    assert [path.name for path in there.parent.iterdir()] == ["tls"]
    assert "node2 has joined the cluster" in capsys.readouterr().out


def test_a_wrong_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It opens nothing, and after a few from an address the right one does not either."""

    async def scenario() -> None:
        async with open_world(tmp_path) as world:
            wrong = JoinCode(world.code.fingerprint, b"x" * 10)
            for _ in range(NETWORK_TRIES_MAX):
                assert await world.joins(code=wrong) == ExitCode.REFUSED
                assert "refuses: the code is not that of the invitation" in capsys.readouterr().err
            assert await world.joins() == ExitCode.REFUSED
            assert "too many wrong codes came from this address" in capsys.readouterr().err
            assert not world.over.done()
            assert world.authority.ledger() == []
            assert world.is_untouched()

    asyncio.run(scenario())


def test_too_many_wrong_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They end the invitation, and then nobody is asked any more. They are counted by network."""
    tries = Tries()
    for at in range(TRIES_MAX):
        assert not tries.is_over
        tries.add(f"10.0.{at}.1")
    assert tries.is_over
    assert not tries.is_shut_out("10.0.0.1")
    monkeypatch.setattr("infiniswap.identity.invitation.TRIES_MAX", 1)

    async def scenario() -> None:
        async with open_world(tmp_path) as world:
            await world.joins(code=JoinCode(world.code.fingerprint, b"x" * 10))
            error = await world.refusal()
            assert error.code == ExitCode.REFUSED
            assert "too many wrong codes" in str(error)
            assert await world.joins() == ExitCode.UNREACHABLE

    asyncio.run(scenario())


def test_time_is_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both ends say so in a line."""

    async def scenario() -> None:
        async with open_world(tmp_path, valid_s=0.05) as world:
            async with asyncio.timeout(paced(20)):
                assert "'node2' has not joined in time; the code is void" in str(await world.refusal())
            assert await world.joins() == ExitCode.UNREACHABLE
            assert "nobody listens there; is 'infiniswap cluster invite' still open?" in capsys.readouterr().err

    asyncio.run(scenario())


def test_a_code_is_used_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes while another joins gets nothing; who does not go on loses what it got."""
    monkeypatch.setattr(inviting, "CONFIRM_S", 0.5)

    async def scenario() -> None:
        async with open_world(tmp_path) as world:

            def take() -> str:
                with JoinClient(world.address, world.code) as client:
                    answer = client.join(world.request(), utc_now())
                    with pytest.raises(UserError, match="used already: invite once more"):
                        client.join(world.request(), utc_now())
                    with pytest.raises(UserError, match="not the certificate which was issued"):
                        client.confirm("1234")
                (tmp_path / "got.pem").write_text(answer["certificate"])
                return describe(read_certificate(tmp_path / "got.pem")).serial

            serial = await asyncio.to_thread(take)
            assert "did not go on: its certificate was taken back" in str(await world.refusal())
            assert serial in read_revoked(world.authority.folder / CRL)
            assert await world.joins() == ExitCode.UNREACHABLE

    asyncio.run(scenario())


def test_a_word_that_comes_too_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An inviter that is just closing takes no word that all is well: what it takes back must not be in force."""

    async def scenario() -> None:
        async with open_world(tmp_path) as world:
            close, late = HttpServer.close, list[UserError]()

            async def closing(server: HttpServer) -> None:
                with pytest.raises(UserError) as caught:
                    await asyncio.to_thread(client.confirm, serial)
                late.append(caught.value)
                await close(server)

            with JoinClient(world.address, world.code) as client:
                answer = await asyncio.to_thread(client.join, world.request(), utc_now())
                (tmp_path / "got.pem").write_text(answer["certificate"])
                serial = describe(read_certificate(tmp_path / "got.pem")).serial
                monkeypatch.setattr(HttpServer, "close", closing)
                world.over.cancel()
                await asyncio.wait([world.over])
            assert "no certificate waits for that" in str(late[0])
            assert serial in read_revoked(world.authority.folder / CRL)

    asyncio.run(scenario())


def test_an_inviter_that_is_stopped(tmp_path: Path) -> None:
    """Between the two steps: the certificate counts for nothing, and the other end keeps none."""

    async def scenario() -> None:
        async with open_world(tmp_path) as world:

            def stopped(self: JoinClient, serial: str) -> None:
                loop.call_soon_threadsafe(world.over.cancel)
                confirm(self, serial)

            loop, confirm = asyncio.get_running_loop(), JoinClient.confirm
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(JoinClient, "confirm", stopped)
                assert await world.joins() in (ExitCode.UNREACHABLE, ExitCode.REFUSED)
            assert world.is_untouched()
            (entry,) = world.authority.ledger()
            assert entry.revoked

    asyncio.run(scenario())


@pytest.mark.parametrize("step", ["join", "confirm"])
def test_a_join_that_is_interrupted(step: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C leaves nothing behind."""

    async def scenario() -> None:
        async with open_world(tmp_path) as world:

            def interrupted(*_: object) -> None:
                raise KeyboardInterrupt

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(JoinClient, step, interrupted)
                assert await world.joins() == 130
            assert world.is_untouched()
            assert "has not joined; nothing was written" in capsys.readouterr().err

    asyncio.run(scenario())


def test_ctrl_c_waits_for_the_last_step() -> None:
    """From the word that all is well until the files are there it is held, and then counts."""
    held = []

    def last_step() -> None:
        with joining.uninterrupted():
            signal.raise_signal(signal.SIGINT)
            held.append(True)

    with pytest.raises(KeyboardInterrupt):
        last_step()
    assert held
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_another_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line typed on the wrong host is told, and the code is still good."""

    async def scenario() -> None:
        async with open_world(tmp_path) as world:
            assert await world.joins(name="node3") == ExitCode.REFUSED
            assert "for 'node2', and the host that joins calls itself 'node3'" in capsys.readouterr().err
            assert world.is_untouched()
            assert world.authority.ledger() == []
            assert await world.joins() == ExitCode.OK

    asyncio.run(scenario())


@pytest.mark.parametrize("days", [-1, 1])
def test_a_clock_that_is_a_day_off(days: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is told with both times, before anything is issued."""
    wrong = utc_now() + timedelta(days=days)

    async def scenario() -> None:
        async with open_world(tmp_path) as world:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("infiniswap.identity.identity.utc_now", lambda: wrong)
                assert await world.joins() == ExitCode.REFUSED
            said = capsys.readouterr().err
            assert f"the clocks are not the same: 'node2' has {wrong:%Y-%m-%d %H:%M} UTC, the authority's" in said
            assert world.authority.ledger() == []
            assert await world.joins() == ExitCode.OK

    asyncio.run(scenario())


class Impostor(asyncio.Protocol):
    """Keeps what it is sent."""

    def __init__(self, got: bytearray) -> None:
        self._got = got

    def data_received(self, data: bytes) -> None:
        """Once TLS is spoken."""
        self._got += data


def test_somebody_in_between(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A server with another certificate, though one of the cluster, is sent nothing at all."""
    folder = Cluster.make(tmp_path).host("node9")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(paths(folder).cert, paths(folder).key)
    got = bytearray()

    async def scenario() -> None:
        async with open_world(tmp_path) as world:
            loop = asyncio.get_running_loop()
            server = await loop.create_server(lambda: Impostor(got), "127.0.0.1", 0, ssl=context)
            between = HostPort("127.0.0.1", server.sockets[0].getsockname()[1])
            world.address, real = between, world.address
            assert await world.joins() == ExitCode.REFUSED
            assert f"{between} shows another certificate than the one that the code names" in capsys.readouterr().err
            server.close()
            assert got == b""
            assert world.is_untouched()
            world.address = real
            assert await world.joins() == ExitCode.OK

    asyncio.run(scenario())


def test_garbage(tmp_path: Path) -> None:
    """Whatever comes to the port is sent away, and the host joins beside it."""

    async def scenario() -> None:
        async with open_world(tmp_path) as world:
            silent = [socket.create_connection(world.address) for _ in range(40)]
            silent[0].sendall(b"\x16\x03\x01\xff\xff" + bytes(600))
            silent[1].sendall(b"NBDMAGIC" * 100)
            reader, writer = await asyncio.open_connection(*world.address)
            writer.write(b"POST /v1/join HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
            answer = await reader.read(65536)
            writer.close()
            assert b"403" in answer.partition(b"\r\n")[0]
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"].startswith("this port is for")

            def ask(purpose: str, body: bytes) -> object:
                proof = {"Authorization": f"Infiniswap-Join {world.code.proof(purpose, body)}"}
                with JoinClient(world.address, world.code) as client:
                    return client._request("POST", f"/v1/{purpose}", body, proof)  # as no client of ours does

            for purpose, body in (("join", b"[]"), ("join", b"{}"), ("join", b"{" * 20_000), ("joined", b"{}")):
                with pytest.raises(UserError):
                    await asyncio.to_thread(ask, purpose, body)
            assert await world.joins() == ExitCode.OK
            for each in silent:
                each.close()

    asyncio.run(scenario())


def test_an_identity_that_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It stays unless --replace is given; an authority always does."""

    async def scenario() -> None:
        async with open_world(tmp_path) as world:
            world.folder.mkdir()
            write_file(world.folder / HOST_KEY, b"old", secret=True)
            write_file(world.folder / "other", b"stays")
            assert await world.joins() == ExitCode.IN_USE
            assert "--replace" in capsys.readouterr().err
            assert (world.folder / HOST_KEY).read_bytes() == b"old"
            write_file(world.folder / CA_KEY, b"authority", secret=True)
            assert await world.joins("--replace") == ExitCode.IN_USE
            (world.folder / CA_KEY).unlink()
            assert await world.joins("--replace") == ExitCode.OK
            assert Identity(TlsPaths.of_folder(world.folder)).own.subject == "node2"
            assert (world.folder / "other").read_bytes() == b"stays"
            assert stat.S_IMODE((world.folder / HOST_KEY).stat().st_mode) == 0o600

    asyncio.run(scenario())


@pytest.mark.parametrize("damage", ["authority", "certificate", "revoked"])
def test_what_is_sent_is_looked_at(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files that do not belong together are not taken, and the certificate is not confirmed."""
    other = Cluster.make(tmp_path, "other")
    foreign = {
        "authority": (other.authority.folder / CA_CERT).read_text(),
        "certificate": (other.host("node2") / HOST_CERT).read_text(),
        "revoked": (other.authority.folder / CRL).read_text(),
    }

    async def scenario() -> None:
        async with open_world(tmp_path) as world:
            join, confirmed = JoinClient.join, list[str]()
            with pytest.MonkeyPatch.context() as patch:
                changed = {damage: foreign[damage]}
                patch.setattr(JoinClient, "join", lambda self, *given: {**join(self, *given), **changed})
                patch.setattr(JoinClient, "confirm", lambda _self, serial: confirmed.append(serial))
                assert await world.joins() != ExitCode.OK
            assert confirmed == [], "this host has to find it by itself"
            assert len(capsys.readouterr().err.splitlines()) == 1
            assert world.is_untouched()
            assert not world.over.done()

    asyncio.run(scenario())
