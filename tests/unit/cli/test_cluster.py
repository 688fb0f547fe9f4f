"""infiniswap cluster: two commands make a cluster of two hosts, and show tells what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infiniswap.cli import main as cli_main
from infiniswap.identity.certificates import describe, read_certificate
from infiniswap.identity.files import CA_KEY, CRL, HOST_CERT, HOST_KEY, TlsPaths
from infiniswap.identity.identity import Identity
from infiniswap.shared.errors import ExitCode


def run(folder: Path, verb: str, *arguments: str) -> int:
    """A verb's exit code."""
    return cli_main.run(["cluster", verb, *arguments, "--directory", str(folder)])


def test_a_cluster_of_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Init and issue give both hosts what they need to let each other in, and the next step is said."""
    folder = tmp_path / "tls"
    assert run(folder, "init", "node1", "10.0.0.5") == ExitCode.OK
    assert run(folder, "issue", "node2", "10.0.0.6") == ExitCode.OK
    bundle = folder / "issued" / "node2"
    assert f"scp -p {bundle}/* node2:/etc/infiniswap/tls/" in capsys.readouterr().out
    one, two = (Identity(TlsPaths.of_folder(each)).own for each in (folder, bundle))
    assert set(one.names) == {"node1", "10.0.0.5", "localhost", "127.0.0.1", "::1"}
    assert {"node2", "10.0.0.6"} <= set(two.names)
    assert one.issuer == two.issuer
    assert not (bundle / CA_KEY).exists()
    assert run(folder, "show") == ExitCode.OK
    shown = capsys.readouterr().out
    assert "node1, for node1" in shown
    assert "Issued       node2: good, until" in shown
    assert shown.splitlines()[5].endswith(": infiniswap cluster renew")
    assert run(bundle, "show") == ExitCode.OK
    shown = capsys.readouterr().out
    assert "Issued" not in shown
    assert "authority's host: infiniswap cluster renew node2 | ssh node2 infiniswap cluster renew --from -" in shown


def test_revoke_and_renew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both count at once on the authority's host, and who must get the list is said."""
    folder = tmp_path / "tls"
    run(folder, "init", "10.0.0.5", "node1")
    run(folder, "issue", "node2")
    before = describe(read_certificate(folder / HOST_CERT))
    capsys.readouterr()
    assert run(folder, "renew", "--days", "20") == ExitCode.OK
    after = describe(read_certificate(folder / HOST_CERT))
    assert after.serial != before.serial
    assert after.subject == before.subject == "10.0.0.5"
    assert set(after.names) == set(before.names)
    assert run(folder, "revoke", "node2") == ExitCode.OK
    assert f"copy {folder / CRL} to 10.0.0.5" in capsys.readouterr().out
    assert run(folder, "show", "--json") == ExitCode.FAILED
    shown = json.loads(capsys.readouterr().out)
    assert [row["state"] for row in shown["issued"]] == ["good", "revoked", "good"]
    assert ["expires on" in problem for problem in shown["problems"]] == [True]


def test_another_host_is_renewed(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """What renew prints here is taken there, and of a third host it is not."""
    folder = tmp_path / "tls"
    for verb, *arguments in (("init", "node1"), ("issue", "node2", "--days", "40"), ("issue", "node3")):
        assert run(folder, verb, *arguments) == ExitCode.OK
    two, three, sent = folder / "issued" / "node2", folder / "issued" / "node3", tmp_path / "sent"
    before = describe(read_certificate(two / HOST_CERT))
    capfdbinary.readouterr()
    assert run(folder, "renew", "node2") == ExitCode.OK
    sent.write_bytes(capfdbinary.readouterr().out)
    assert run(two, "renew", "--from", str(sent)) == ExitCode.OK
    assert describe(read_certificate(two / HOST_CERT)).not_after > before.not_after
    assert run(three, "renew", "--from", str(sent)) == ExitCode.USAGE
    assert run(two, "renew", "node2", "--from", str(sent)) == ExitCode.USAGE
    assert run(two, "renew") == ExitCode.NOT_FOUND


def test_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A key that is open to others is a problem that show tells; elsewhere it is said what to do first."""
    folder = tmp_path / "tls"
    assert run(folder, "show") == ExitCode.NOT_FOUND
    assert "in no cluster yet" in capsys.readouterr().err
    assert run(folder, "issue", "node2") == ExitCode.NOT_FOUND
    assert "where 'infiniswap cluster init' was run" in capsys.readouterr().err
    run(folder, "init", "node1")
    assert run(folder, "init", "node1") == ExitCode.IN_USE
    assert run(folder, "issue", "../x") == ExitCode.USAGE
    capsys.readouterr()
    (folder / HOST_KEY).chmod(0o644)
    assert run(folder, "show") == ExitCode.FAILED
    assert "Problem      the key" in capsys.readouterr().out
    (folder / HOST_KEY).unlink()
    assert run(folder, "show") == ExitCode.FAILED
    assert "does not exist" in capsys.readouterr().out
