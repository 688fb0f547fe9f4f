"""The authority issues what TLS libraries and openssl take, remembers it, and takes it back."""

from __future__ import annotations

import stat
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from infiniswap.identity import HOST_DAYS
from infiniswap.identity.authority import Authority
from infiniswap.identity.certificates import describe, read_certificate, read_key, read_revoked
from infiniswap.identity.files import BUNDLES, CA_CERT, CA_KEY, CRL, HOST_CERT, HOST_KEY, LEDGER
from infiniswap.identity.identity import utc_now
from infiniswap.identity.requests import check_host
from infiniswap.shared.errors import ExitCode, UserError


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """A new one."""
    return Authority.create(tmp_path / "tls", "test cluster", utc_now())


def mode_of(path: Path) -> int:
    """Permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


def test_keys_are_their_owners_alone(authority: Authority) -> None:
    """Folder, keys and ledger are open to nobody else, whatever the umask; certificates are for everybody."""
    authority.write_host(["node1"], utc_now())
    bundle = authority.write_bundle(["node2"], utc_now())
    folder = authority.folder
    assert mode_of(folder) == mode_of(bundle) == 0o700
    assert {mode_of(folder / name) for name in (CA_KEY, HOST_KEY, LEDGER)} == {0o600}
    assert mode_of(bundle / HOST_KEY) == 0o600
    assert {mode_of(folder / name) for name in (CA_CERT, HOST_CERT, CRL)} == {0o644}
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_what_a_certificate_says(authority: Authority) -> None:
    """Name, names, addresses and time are as asked for; the key is P-256, for servers and clients, and no authority."""
    now = utc_now()
    authority.write_host(["Node1", "10.0.0.5", "node1.example.net", "fd00:0::5"], now)
    certificate = read_certificate(authority.folder / HOST_CERT)
    told = describe(certificate)
    assert told.subject == "node1"
    assert set(told.names) == {"node1", "node1.example.net", "10.0.0.5", "fd00::5"}
    assert told.not_before < now - timedelta(minutes=59)
    assert abs(told.not_after - now - timedelta(days=HOST_DAYS)) < timedelta(seconds=2)
    key = read_key(authority.folder / HOST_KEY)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.curve.name == "secp256r1"
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical
    assert not basic.value.ca
    assert told.problem(now) is None
    assert "expired" in str(told.problem(now + timedelta(days=HOST_DAYS + 1)))
    assert "clock" in str(told.problem(now - timedelta(days=1)))


def test_openssl_takes_it(authority: Authority) -> None:
    """Another implementation finds a good chain, and after the revocation none."""
    authority.write_host(["node1"], utc_now())
    folder = authority.folder

    def verify() -> subprocess.CompletedProcess[str]:
        chain = ["-CAfile", f"{folder / CA_CERT}", "-CRLfile", f"{folder / CRL}", "-crl_check", "-x509_strict"]
        command = ["openssl", "verify", *chain, "-purpose", "sslserver", str(folder / HOST_CERT)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)

    assert verify().returncode == 0, verify().stderr
    assert authority.revoke("node1", utc_now()) == 1
    assert "certificate revoked" in verify().stderr


def test_an_authority_is_made_once(authority: Authority) -> None:
    """A second init touches nothing: the key that hosts trust must not be lost."""
    before = (authority.folder / CA_KEY).read_bytes()
    with pytest.raises(UserError, match="in a cluster already") as caught:
        Authority.create(authority.folder, "again", utc_now())
    assert caught.value.code is ExitCode.IN_USE
    assert (authority.folder / CA_KEY).read_bytes() == before


def test_revocation(authority: Authority) -> None:
    """All certificates of the host count no more, those of others and later ones of its own do."""
    now = utc_now()
    for name in ("node1", "node2", "node1"):
        authority.write_bundle([name], now)
    ledger = authority.ledger()
    assert authority.revoke("NODE1", now) == 2
    assert authority.revoke("node1", now) == 0
    authority = Authority.open(authority.folder)
    bundle = authority.write_bundle(["node1"], now)
    revoked = read_revoked(authority.folder / CRL)
    assert revoked == {ledger[0].serial, ledger[2].serial} == read_revoked(bundle / CRL)
    assert describe(read_certificate(bundle / HOST_CERT)).serial not in revoked
    with pytest.raises(UserError, match=r"no certificate was issued to 'node9'; there are node1, node2"):
        authority.revoke("node9", now)


def test_no_certificate_outlives_its_authority(authority: Authority) -> None:
    """However many days are asked for."""
    authority.write_host(["node1"], utc_now(), days=5000)
    told = describe(read_certificate(authority.folder / HOST_CERT))
    assert told.not_after == describe(authority.certificate).not_after


@pytest.mark.parametrize("name", ["", "a b", "../x", "-x", "a..b", "x" * 65, "nöde", "*", "node1\n", "a/b"])
def test_names_that_are_none(name: str) -> None:
    """What could be a path, a pattern or nonsense is no name of a host."""
    with pytest.raises(UserError, match="no host name"):
        check_host(name)


def test_a_bundle_stays_in_its_folder(authority: Authority) -> None:
    """An address with colons is a folder of its own."""
    bundle = authority.write_bundle(["fd00::7"], utc_now())
    assert bundle.parent == authority.folder / BUNDLES
    assert describe(read_certificate(bundle / HOST_CERT)).names == ("fd00::7",)


def test_a_ledger_that_is_damaged(authority: Authority) -> None:
    """Nothing is issued or taken back by guessing."""
    (authority.folder / LEDGER).write_text("[{}]")
    with pytest.raises(UserError, match="not as it was written"):
        authority.issue(["node1"], utc_now())


def test_without_an_authority(tmp_path: Path) -> None:
    """Other hosts are told where it is done."""
    with pytest.raises(UserError, match="where 'infiniswap cluster init' was run"):
        Authority.open(tmp_path)
