"""Certificates for tests: a cluster with an authority, and such certificates as should not be let in."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from infiniswap.identity.authority import Authority
from infiniswap.identity.files import CA_CERT, CRL, HOST_CERT, HOST_KEY, TlsPaths, make_folder, write_file
from infiniswap.identity.identity import utc_now

LOCAL = ("localhost", "127.0.0.1", "::1")
DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Cluster:
    """An authority, and folders with what each host has."""

    folder: Path
    authority: Authority

    @classmethod
    def make(cls, folder: Path, name: str = "cluster") -> Cluster:
        """A new one in folder / name, since four years ago."""
        return cls(folder, Authority.create(folder / name, name, utc_now() - 1461 * DAY))

    def host(
        self, name: str, *more: str, at: datetime | None = None, days: float = 365, authority: Authority | None = None
    ) -> Path:
        """A folder for that host, issued at that time by that authority; what it trusts is this cluster's."""
        certificate, key = (authority or self.authority).issue([name, *(more or LOCAL)], at or utc_now(), days)
        folder = self.folder / name
        make_folder(folder)
        write_file(folder / HOST_KEY, key, secret=True)
        write_file(folder / HOST_CERT, certificate)
        write_file(folder / CA_CERT, (self.authority.folder / CA_CERT).read_bytes())
        self.copy_list(name)
        return folder

    def copy_list(self, *names: str) -> None:
        """Give these hosts the authority's present revocation list."""
        for name in names:
            write_file(self.folder / name / CRL, (self.authority.folder / CRL).read_bytes())

    def revoke(self, name: str) -> None:
        """Take back what that host has; who is to know needs copy_list()."""
        self.authority.revoke(name, utc_now())


def paths(folder: Path) -> TlsPaths:
    """Of a folder that host() made."""
    return TlsPaths.of_folder(folder)
