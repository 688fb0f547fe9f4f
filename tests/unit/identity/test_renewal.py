"""A host's certificate is renewed with one line, without a secret on the way; nothing older or foreign is taken."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from infiniswap.identity.authority import Authority
from infiniswap.identity.certificates import describe, read_certificate, read_revoked
from infiniswap.identity.files import CRL, HOST_CERT, HOST_KEY, TlsPaths
from infiniswap.identity.identity import Identity, utc_now
from infiniswap.identity.renewal import read_renewal, renewal_of, take
from infiniswap.shared.errors import ExitCode, UserError
from tests.support.certificates import DAY, Cluster


def renewal(authority: Authority, host: str = "node2", days: float = 365) -> bytes:
    """What the authority's host prints."""
    return renewal_of(authority.renew(host, utc_now(), days), authority.public_list())


def test_a_host_is_renewed(tmp_path: Path) -> None:
    """For the same key and names, with the list as it is now; a program that runs takes it up."""
    cluster = Cluster.make(tmp_path)
    folder = cluster.host("node2", "10.0.0.6", days=40)
    cluster.host("node3")
    identity, key = Identity(TlsPaths.of_folder(folder)), (folder / HOST_KEY).read_bytes()
    before = identity.own
    cluster.revoke("node3")
    sent = renewal(cluster.authority)
    assert b"PRIVATE" not in sent
    own = take(folder, read_renewal(io.BytesIO(sent)))
    assert (own.subject, own.names) == (before.subject, before.names)
    assert own.not_after - before.not_after > 300 * DAY
    assert (folder / HOST_KEY).read_bytes() == key
    assert len(read_revoked(folder / CRL)) == 1
    assert identity.refresh()
    assert identity.own.serial == own.serial
    assert own.serial in {entry.serial for entry in cluster.authority.ledger()}


def test_what_is_not_taken(tmp_path: Path) -> None:
    """Another authority's, another host's, an older one, an older list, and what is none: nothing changes."""
    cluster, other = Cluster.make(tmp_path), Cluster.make(tmp_path, "other")
    other.host("node2")
    cluster.host("node3")
    folder = cluster.host("node2", days=40)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    good, foreign = renewal(cluster.authority), renewal(other.authority)
    mark = b"-----BEGIN X509 CRL"
    mixed = foreign[: foreign.index(mark)] + good[good.index(mark) :]
    wrong = {
        "of another authority": foreign,
        "do not belong together": renewal(cluster.authority, "node3"),
        "older than what": renewal(cluster.authority, days=30),
        "that is no renewed certificate": good[:-200],
        "": mixed,
    }
    for words, content in wrong.items():
        with pytest.raises(UserError) as caught:
            take(folder, content)
        assert words in str(caught.value)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    cluster.revoke("node3")
    cluster.copy_list("node2")
    with pytest.raises(UserError, match="older than what"):
        take(folder, good)


def test_who_is_not_renewed(tmp_path: Path) -> None:
    """A host whose certificate was revoked, and one that nothing is known of."""
    cluster = Cluster.make(tmp_path)
    cluster.host("node2")
    serial = describe(read_certificate(tmp_path / "node2" / HOST_CERT)).serial
    cluster.revoke("node2")
    for host, code in (("node2", ExitCode.REFUSED), ("node4", ExitCode.NOT_FOUND)):
        with pytest.raises(UserError) as caught:
            cluster.authority.renew(host, utc_now())
        assert caught.value.code == code
    assert [entry.serial for entry in cluster.authority.ledger()] == [serial]
