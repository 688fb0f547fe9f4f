"""The donor verbs ask a memory daemon for the right thing and print it; what is wrong is one line and an exit code."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from aiohttp import web

from infiniswap.cli import donor_drain
from infiniswap.cli import main as cli_main
from infiniswap.shared import donor_client
from infiniswap.shared.errors import ExitCode
from infiniswap.shared.operator_messages import DonorState, DonorStatus, DrainState, Host, LeaseShown
from tests.support.donor_status import SWAP, VOL, donor_status, drain
from tests.support.fake_control import FakeDonor

VERBS = ("status", "cordon", "uncordon", "drain")


@pytest.fixture
def donor() -> Iterator[FakeDonor]:
    """A daemon that lends."""
    answer = donor_status().as_json()
    with FakeDonor({("GET", "/v1/status"): answer}) as donor:
        yield donor


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long."""
    monkeypatch.setattr(donor_drain, "POLL_S", 0.01)


def run(*arguments: str) -> int:
    """The command's exit code."""
    return cli_main.run(["donor", *arguments])


def in_turn(*statuses: DonorStatus) -> Any:
    """Answers one after the other, and the last again and again."""
    left = list(statuses)

    def answer() -> web.Response:
        return web.json_response((left.pop(0) if len(left) > 1 else left[0]).as_json())

    return answer


def test_status(donor: FakeDonor, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything that an administrator asks for: version, memory, host, evictions, and who holds what."""
    assert run("status", donor.address) == ExitCode.OK
    assert capsys.readouterr().out.splitlines() == [
        f"Daemon:     {donor.address}, version 0.1.0, incarnation a1b2c3d4, up 1h2m",
        "State:      lending",
        "Lent:       256MiB of at most 4GiB; 2GiB free",
        "Taken:      320MiB promised, 200MiB really occupied",
        "Host:       40GiB available of 64GiB; memory pressure 0.5 %",
        "Headroom:   6GiB are kept free",
        "Evictions:  12 slabs given back when asked to, 3 by force",
        "",
        "DEVICE  HOST      SLABS    SIZE  CONNS  EXPIRES",
        "vol     10.0.0.7      3  192MiB      2      58s",
        "swap0   10.0.0.8      1   64MiB      2       0s",
    ]


def test_status_of_a_host_near_its_limit(capsys: pytest.CaptureFixture[str]) -> None:
    """What it has in lists of its processors is told, for other programs do not count it; an older daemon has none."""
    answer = donor_status(host=Host(64 << 30, 6 << 30, 6 << 30, 0.5, percpu_bytes=300 << 20)).as_json()
    for told, line in ((True, "6GiB available (300MiB in lists of its processors)"), (False, "6GiB available")):
        if not told:
            del answer["host"]["percpu_bytes"]
        with FakeDonor({("GET", "/v1/status"): answer}) as donor:
            assert run("status", donor.address) == ExitCode.OK
        assert f"Host:       {line} of 64GiB; memory pressure 0.5 %" in capsys.readouterr().out.splitlines()


def test_status_for_programs(donor: FakeDonor, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON holds all that the daemon said; columns can be chosen; sizes can be in bytes."""
    assert run("status", donor.address, "--json") == ExitCode.OK
    assert json.loads(capsys.readouterr().out) == donor_status().as_json()
    assert run("status", donor.address, "-nb", "-o", "device,size,lease") == ExitCode.OK
    assert capsys.readouterr().out.split() == ["vol", str(192 << 20), "11aa", "swap0", str(64 << 20), "22bb"]
    assert run("status", donor.address, "-b") == ExitCode.OK
    assert re.search(r"^Headroom: +6442450944 are kept free$", capsys.readouterr().out, re.MULTILINE)


def test_status_while_draining_and_without_a_host(donor: FakeDonor, capsys: pytest.CaptureFixture[str]) -> None:
    """The drain is shown; huge pages have no headroom; an address may be the URL of the ready line."""
    status = donor_status(state=DonorState.DRAINING, host=None, drain=drain())
    donor.answers["GET", "/v1/status"] = status.as_json()
    assert run("status", f"http://{donor.address}/") == ExitCode.OK
    out = capsys.readouterr().out
    assert "State:      draining\n" in out
    assert "Host:       not measured: huge pages are reserved\n" in out
    assert "Drain:      running: 2 of 6 slabs given back, by force in 9m57s; left: vol (10.0.0.7) 3, swap0 (10" in out


@pytest.mark.parametrize(
    ("verb", "status", "said"),
    [
        ("cordon", donor_status(state=DonorState.CORDONED), "cordoned; 4 slabs of 2 leases are lent"),
        (
            "cordon",
            donor_status(state=DonorState.DRAINING, drain=drain()),
            "cordoned, and draining; 4 slabs of 2 leases are lent",
        ),
        ("uncordon", donor_status(), "lending; 2GiB are free"),
    ],
)
def test_cordon_and_uncordon(
    donor: FakeDonor, capsys: pytest.CaptureFixture[str], verb: str, status: DonorStatus, said: str
) -> None:
    """They ask for what they are called, and tell how the daemon stands then."""
    donor.answers["POST", f"/v1/{verb}"] = status.as_json()
    assert run(verb, donor.address) == ExitCode.OK
    assert capsys.readouterr().out == f"{donor.address} {said}\n"
    assert donor.requests[-1] == ("POST", f"/v1/{verb}")


def test_uncordon_ends_a_drain(donor: FakeDonor, capsys: pytest.CaptureFixture[str]) -> None:
    """And says how far that had come."""
    donor.answers["GET", "/v1/status"] = donor_status(state=DonorState.DRAINING, drain=drain()).as_json()
    donor.answers["POST", "/v1/uncordon"] = donor_status(drain=drain(DrainState.ENDED)).as_json()
    assert run("uncordon", donor.address) == ExitCode.OK
    assert capsys.readouterr().out == f"{donor.address} lending; the drain ended with 4 slabs left; 2GiB are free\n"


def test_drain(donor: FakeDonor, capsys: pytest.CaptureFixture[str]) -> None:
    """It waits for the end, says what came of it, and hands the deadline on."""
    running = donor_status(state=DonorState.DRAINING, drain=drain())
    done = donor_status(state=DonorState.DRAINED, leases=(), drain=drain(DrainState.DONE, left=0, elapsed_s=12.4))
    donor.answers["POST", "/v1/drain"] = running.as_json()
    donor.answers["GET", "/v1/status"] = in_turn(running, running, done)
    assert run("drain", donor.address, "--deadline", "1m30s") == ExitCode.OK
    assert capsys.readouterr().out == f"{donor.address} drained: 6 of 6 slabs given back, in 12s\n"
    assert json.loads(donor.bodies[0]) == {"deadline_s": 90.0, "stop": False}
    assert len(donor.requests) == 4


def test_drain_by_force(donor: FakeDonor, capsys: pytest.CaptureFixture[str]) -> None:
    """Which devices did not answer is said; the daemon stops when that was asked for."""
    forced = drain(DrainState.DONE, left=0, forced=(SWAP, VOL), stop=True)
    donor.answers["POST", "/v1/drain"] = donor_status(state=DonorState.DRAINED, drain=forced).as_json()
    assert run("drain", donor.address, "--stop") == ExitCode.OK
    assert capsys.readouterr().out.splitlines() == [
        f"{donor.address} drained: 2 of 6 slabs given back, 4 taken by force, in 3.2s; the daemon stops",
        "no answer in time, taken by force from: vol (10.0.0.7) 3, swap0 (10.0.0.8) 1",
    ]
    assert json.loads(donor.bodies[0]) == {"deadline_s": None, "stop": True}


def test_drain_without_waiting(donor: FakeDonor, capsys: pytest.CaptureFixture[str]) -> None:
    """It returns at once, with what is left; --json is the daemon's status."""
    donor.answers["POST", "/v1/drain"] = donor_status(state=DonorState.DRAINING, drain=drain()).as_json()
    assert run("drain", donor.address, "--no-wait") == ExitCode.OK
    assert capsys.readouterr().out.startswith(f"{donor.address} draining: 2 of 6 slabs given back, by force in 9m57s; ")
    assert run("drain", donor.address, "--no-wait", "--json") == ExitCode.OK
    assert json.loads(capsys.readouterr().out)["drain"]["left"] == 4
    assert {path for _, path in donor.requests} == {"/v1/drain"}


def test_drain_ended_by_uncordon(donor: FakeDonor, capsys: pytest.CaptureFixture[str]) -> None:
    """Somebody else changed his mind: exit code 1, with what is left."""
    donor.answers["POST", "/v1/drain"] = donor_status(state=DonorState.DRAINING, drain=drain()).as_json()
    donor.answers["GET", "/v1/status"] = donor_status(drain=drain(DrainState.ENDED)).as_json()
    assert run("drain", donor.address) == ExitCode.FAILED
    assert capsys.readouterr().err == (
        f"infiniswap: {donor.address}: the drain was ended by uncordon with 4 slabs left\n"
    )


def test_drain_interrupted(
    donor: FakeDonor, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C ends the waiting alone, says so, and how to go on or back."""

    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    donor.answers["POST", "/v1/drain"] = donor_status(state=DonorState.DRAINING, drain=drain()).as_json()
    monkeypatch.setattr(time, "sleep", interrupt)
    assert run("drain", donor.address) == 130
    assert capsys.readouterr().err == (
        f"infiniswap: the drain goes on; 'infiniswap donor drain {donor.address}' watches it, "
        f"'infiniswap donor uncordon {donor.address}' ends it\n"
    )
    assert donor.requests == [("POST", "/v1/drain")]


def test_drain_of_a_daemon_that_answers_no_more(donor: FakeDonor, capsys: pytest.CaptureFixture[str]) -> None:
    """What was still lent then is said."""

    def gone() -> web.Response:
        raise web.HTTPServiceUnavailable(text='{"error": "going"}')

    donor.answers["POST", "/v1/drain"] = donor_status(state=DonorState.DRAINING, drain=drain()).as_json()
    donor.answers["GET", "/v1/status"] = gone
    assert run("drain", donor.address) == ExitCode.FAILED
    assert capsys.readouterr().err == (
        f"infiniswap: the daemon went away while 4 slabs were still lent: {donor.address} refuses: going\n"
    )


def test_many_holders_are_summed_up() -> None:
    """A line stays a line."""
    shown = donor_drain.holders([VOL, SWAP, VOL, SWAP, VOL, SWAP])
    assert shown.endswith("swap0 (10.0.0.8) 1 and 2 more")
    status = donor_status(leases=(LeaseShown("1", SWAP, 0, 1.0),), drain=drain(left=1))
    assert donor_drain.progress_line(status).endswith("; left: swap0 (10.0.0.8) 1")


# ---- what is wrong ----


@contextmanager
def says(greeting: bytes) -> Iterator[str]:
    """A server of something else, at this address, which greets one client so and goes; b"": it is silent."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            client, _ = listening.accept()
            with client:
                client.sendall(greeting)
                client.recv(4096)

        thread = threading.Thread(target=serve)
        if greeting:
            thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        if greeting:
            thread.join(10)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What was said on stderr, which must be all."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("infiniswap: ")
    return err.removeprefix("infiniswap: ").rstrip("\n")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("address", ["7401", "::1", "127.0.0.1:0", "127.0.0.1:70000", ":7401", "::1:7401"])
def test_wrong_address(verb: str, address: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2."""
    assert run(verb, address) == ExitCode.USAGE
    assert f"the address '{address}'" in one_line(capsys)


@pytest.mark.parametrize("verb", VERBS)
def test_nobody_listens(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 7."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
    assert run(verb, address) == ExitCode.UNREACHABLE
    expected = f"{address}: nobody listens there; infiniswapd does not run, or with another --listen"
    assert one_line(capsys) == expected


def test_no_such_host(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 7."""
    assert run("status", "no-such-host.invalid:7401") == ExitCode.UNREACHABLE
    assert one_line(capsys) == "no-such-host.invalid:7401: no such host"


def test_silent(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that takes connections and says nothing: exit code 7 after the time-out."""
    monkeypatch.setattr(donor_client.DonorClient.__init__, "__defaults__", (0.2, None))
    with says(b"") as address:
        assert run("status", address) == ExitCode.UNREACHABLE
    assert one_line(capsys) == f"{address} does not answer within 0.2 s"


@pytest.mark.parametrize(
    ("greeting", "said"),
    [
        (b"SSH-2.0-OpenSSH\r\n", "does not speak HTTP: that is no memory daemon"),
        (b"NBDMAGICIHAVEOPT\0\3\n", "is a port for page I/O: give the daemon's --listen address"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n<html/>", "answers with something that is not JSON"),
    ],
)
def test_another_server(greeting: bytes, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 3, and what it is where that can be told."""
    with says(greeting) as address:
        assert run("status", address) == ExitCode.NOT_FOUND
    assert one_line(capsys) == f"{address} {said}"


def test_another_api(donor: FakeDonor, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON of something else, and a daemon without these calls: exit code 3."""
    donor.answers["GET", "/v1/status"] = {"name": "vol"}
    assert run("status", donor.address) == ExitCode.NOT_FOUND
    assert "answers, but not as a memory daemon of this version: its answer lacks" in one_line(capsys)
    del donor.answers["GET", "/v1/status"]
    assert run("status", donor.address) == ExitCode.NOT_FOUND
    assert "is no memory daemon, or an older one without this command (no such path)" in one_line(capsys)


@pytest.mark.parametrize("verb", VERBS)
def test_refused(donor: FakeDonor, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What the daemon does not take from here: its words, exit code 5."""

    def refuse() -> web.Response:
        return web.json_response({"error": "run it there"}, status=403)

    donor.answers.update({("GET", "/v1/status"): refuse, ("POST", f"/v1/{verb}"): refuse})
    assert run(verb, donor.address) == ExitCode.REFUSED
    assert one_line(capsys) == f"{donor.address} refuses: run it there"


@pytest.mark.parametrize(
    ("deadline", "said"),
    [("soon", "'soon' is no duration; write for example"), ("2h", "--deadline 2h must be at most 1h")],
)
def test_wrong_deadline(donor: FakeDonor, deadline: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, before anything is asked for."""
    assert run("drain", donor.address, "--deadline", deadline) == ExitCode.USAGE
    assert said in one_line(capsys)
    assert donor.requests == []
