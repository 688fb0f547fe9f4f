"""A program's identity: wrong files are one clear line, changed files count without a restart, roles go by names."""

from __future__ import annotations

import logging
import ssl
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from infiniswap.identity.files import CA_CERT, CRL, HOST_CERT, HOST_KEY, TlsPaths
from infiniswap.identity.identity import Identity, utc_now
from infiniswap.identity.roles import Role, Roles, names_in
from infiniswap.shared.errors import UserError
from tests.support.certificates import DAY, Cluster, paths


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    """A new one."""
    return Cluster.make(tmp_path)


def refusal(folder: Path) -> str:
    """What a program says that is to start with these files."""
    with pytest.raises(UserError) as caught:
        Identity(paths(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_good_files(cluster: Cluster) -> None:
    """They are read, and contexts speak TLS 1.3 alone and want certificates."""
    identity = Identity(paths(cluster.host("node1")))
    assert identity.own.subject == "node1"
    for context in (identity.server(), identity.client("node2")):
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.verify_flags & ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
    assert identity.client("node2").check_hostname
    assert identity.server().num_tickets == 0
    assert identity.client("node2") is identity.client("node2") is not identity.client("node3")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (HOST_CERT, "the certificate {} does not exist"),
        (HOST_KEY, "the key {} does not exist"),
        (CA_CERT, "the authority's certificate {} does not exist"),
        (CRL, "the revocation list {} does not exist"),
    ],
)
def test_missing_files(cluster: Cluster, name: str, words: str) -> None:
    """Each is named."""
    folder = cluster.host("node1")
    (folder / name).unlink()
    assert refusal(folder) == words.format(folder / name)


@pytest.mark.parametrize("name", [HOST_CERT, HOST_KEY, CA_CERT, CRL])
@pytest.mark.parametrize(
    "content", [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_damaged_files(cluster: Cluster, name: str, content: bytes) -> None:
    """Each is named, too."""
    folder = cluster.host("node1")
    (folder / name).write_bytes(content)
    assert str(folder / name) in refusal(folder)


def test_a_key_that_others_can_read(cluster: Cluster) -> None:
    """It is not used; a group may have it, for that is how services share one."""
    folder = cluster.host("node1")
    for mode in (0o644, 0o604, 0o620, 0o666):
        (folder / HOST_KEY).chmod(mode)
        assert "open to others" in refusal(folder)
    (folder / HOST_KEY).chmod(0o640)
    Identity(paths(folder))


def test_another_key(cluster: Cluster) -> None:
    """A key and a certificate that do not belong together."""
    folder, other = cluster.host("node1"), cluster.host("node2")
    (folder / HOST_KEY).write_bytes((other / HOST_KEY).read_bytes())
    assert "do not belong together" in refusal(folder)


def test_a_key_with_a_pass_phrase(cluster: Cluster) -> None:
    """Nobody could type it at a start."""
    folder = cluster.host("node1")
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")
    )
    (folder / HOST_KEY).write_bytes(pem)
    assert "pass phrase" in refusal(folder)


def test_certificates_that_nobody_would_let_in(cluster: Cluster, tmp_path: Path) -> None:
    """A program does not start with what all others would refuse, and says why."""
    now = utc_now()
    other = Cluster.make(tmp_path / "elsewhere")
    assert "it has expired on" in refusal(cluster.host("late", at=now - 3 * DAY, days=1))
    assert "is not valid before" in refusal(cluster.host("early", at=now + 2 * DAY))
    assert "another authority" in refusal(cluster.host("stranger", authority=other.authority))
    folder = cluster.host("gone")
    cluster.revoke("gone")
    cluster.copy_list("gone")
    assert "it was revoked" in refusal(folder)


def test_changed_files_count_without_a_restart(cluster: Cluster) -> None:
    """A renewed certificate, and a revocation list that has grown; nothing happens where nothing has changed."""
    folder = cluster.host("node1")
    identity = Identity(paths(folder))
    first, server, client = identity.own.serial, identity.server(), identity.client("node2")
    assert not identity.refresh()
    cluster.host("node1")
    assert identity.refresh()
    assert identity.own.serial != first
    assert identity.server() is not server
    assert identity.client("node2") is not client
    serial = Identity(paths(cluster.host("node2"))).own.serial
    shown = {"serialNumber": serial, "notAfter": "Jan  1 00:00:00 2999 GMT"}
    assert identity.fault(shown) is None
    cluster.revoke("node2")
    cluster.copy_list("node1")
    assert identity.refresh()
    assert identity.fault(shown) == "its certificate was revoked"
    assert identity.fault({**shown, "serialNumber": "0" + serial}) == "its certificate was revoked"
    assert (
        identity.fault({"serialNumber": "1", "notAfter": "Jan  1 00:00:00 2020 GMT"}) == "its certificate has expired"
    )


def test_files_that_change_for_the_worse(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    """Half of a pair, as amid a copy: the one from before counts, that is said once, and the other half mends it."""
    folder = cluster.host("node1")
    identity = Identity(paths(folder))
    first = identity.own.serial
    certificate, key = cluster.authority.issue(["node1"], utc_now())
    (folder / HOST_KEY).write_bytes(key)
    for _ in range(3):
        assert not identity.refresh()
    assert identity.own.serial == first
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == 1
    assert "the one from before counts" in said[0]
    (folder / HOST_CERT).write_bytes(certificate)
    assert identity.refresh()
    assert identity.own.serial != first


def test_the_end_is_announced(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    """A month before, once a day; afterwards it is an error. A new certificate ends that."""
    caplog.set_level(logging.INFO)
    folder = cluster.host("node1", days=31.5)
    moment = utc_now()
    identity = Identity(paths(folder), lambda: moment)

    def said(after: timedelta) -> list[str]:
        nonlocal moment
        caplog.clear()
        moment += after
        identity.refresh()
        return [f"{record.levelname} {record.getMessage()}" for record in caplog.records]

    assert said(DAY) == []
    assert "WARNING this host's certificate expires on" in said(DAY)[0]
    assert said(DAY / 2) == []
    assert "expires on" in said(DAY)[0]
    assert "ERROR this host's certificate has expired" in said(40 * DAY)[0]
    cluster.host("node1", days=400)
    assert "read again" in said(DAY)[0]


def test_without_a_list(cluster: Cluster) -> None:
    """Where there is none, nothing is revoked, and certificates are good all the same."""
    folder = cluster.host("node1")
    where = TlsPaths(folder / HOST_CERT, folder / HOST_KEY, folder / CA_CERT)
    (folder / CRL).unlink()
    assert not Identity(where).server().verify_flags & ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF


def test_roles() -> None:
    """Patterns count for any of a host's names, whatever their case; who may do more may look."""
    roles = Roles(may_borrow=("web*", "10.0.0.?"), may_look=("prometheus",), may_drain=("admin.*",))
    table = {
        ("web1", "10.9.9.9"): {Role.BORROW, Role.LOOK},
        ("WEB2",): {Role.BORROW, Role.LOOK},
        ("db", "10.0.0.7"): {Role.BORROW, Role.LOOK},
        ("db", "10.0.0.70"): set(),
        ("prometheus",): {Role.LOOK},
        ("admin.example.net",): {Role.DRAIN, Role.LOOK},
        (): set(),
    }
    for names, allowed in table.items():
        assert {role for role in Role if roles.allow(role, names)} == allowed, names
    assert {role for role in Role if Roles().allow(role, ("anybody",))} == {Role.BORROW, Role.LOOK}
    assert not Roles(may_borrow=()).allow(Role.BORROW, ("anybody",))


def test_names_in_a_certificate() -> None:
    """What it is called, and all that it is for; other kinds of names are none of a host."""
    shown = {
        "subject": ((("organizationName", "x"),), (("commonName", "node1"),)),
        "subjectAltName": (("DNS", "node1"), ("DNS", "n1.example"), ("IP Address", "10.0.0.1"), ("email", "a@b")),
    }
    assert names_in(shown) == ("node1", "n1.example", "10.0.0.1")
    assert names_in({}) == ()


def test_as_options_name_them(tmp_path: Path) -> None:
    """A folder, or three files; a file counts more than the folder's, and what is missing is named."""
    cert, key, ca, crl = (tmp_path / name for name in ("c", "k", "a", "r"))
    folder = TlsPaths.of_folder(tmp_path)
    assert TlsPaths.of_options(None, None, None, None, None) is None
    assert TlsPaths.of_options(tmp_path, None, None, None, None) == folder
    assert TlsPaths.of_options(None, cert, key, ca, None) == TlsPaths(cert, key, ca, None)
    assert TlsPaths.of_options(tmp_path, cert, key, None, None) == TlsPaths(cert, key, folder.ca, folder.crl)
    for given, lacking in (((cert, None, ca, None), "--tls-key"), ((None, None, None, crl), "--tls-cert, --tls-key")):
        with pytest.raises(UserError, match=f"{lacking}.* is missing"):
            TlsPaths.of_options(None, *given)
