"""Orders come from the daemon's own host, however that was addressed, and from nowhere else."""

from __future__ import annotations

import pytest

from infiniswap.daemon.operators import is_local


@pytest.mark.parametrize(
    ("peer", "own"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.2", "10.0.0.1"),
        ("::1", "::1"),
        ("::ffff:127.0.0.1", "::ffff:127.0.0.1"),
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
    ],
)
def test_local(peer: str, own: str) -> None:
    """By loopback, or to one of the host's addresses, from which the kernel then sends, too."""
    assert is_local(peer, own)


@pytest.mark.parametrize(
    ("peer", "own"),
    [
        ("10.0.0.2", "10.0.0.1"),
        ("10.0.0.2", "127.0.0.1"),
        ("fe80::2%eth0", "fe80::1%eth0"),
        ("::ffff:10.0.0.2", "::1"),
        ("", ""),
        ("@", "127.0.0.1"),
    ],
)
def test_from_elsewhere(peer: str, own: str) -> None:
    """Others, and whatever is no address."""
    assert not is_local(peer, own)
