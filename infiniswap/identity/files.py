"""Where the files of an identity lie, written and read with care: keys are for their owner alone."""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infiniswap.shared.errors import ExitCode, UserError
from infiniswap.shared.paths import tls_dirs
from infiniswap.shared.private_files import replace_file

CA_CERT, CA_KEY, CRL = "ca.pem", "ca.key", "crl.pem"
HOST_CERT, HOST_KEY = "host.pem", "host.key"
LEDGER, BUNDLES, LOCK = "issued.json", "issued", "issuing.lock"
HOSTS = "hosts"  # certificates that others have
FOLDER_VARIABLE, NO_FOLDER = "INFINISWAP_TLS_DIR", "none"  # in the environment; no certificate, though there is one
FILE_BYTES_MAX = 16 << 20  # a revocation list of 200,000 certificates
_OTHERS = stat.S_IRWXO | stat.S_IWGRP  # a group may read a key: that is how services share one


@dataclass(frozen=True, slots=True)
class TlsPaths:
    """The files that a program shows itself by, and knows others by; crl: None where nothing is ever revoked."""

    cert: Path
    key: Path
    ca: Path
    crl: Path | None = None

    @classmethod
    def of_folder(cls, folder: Path) -> TlsPaths:
        """As 'infiniswap cluster' names them."""
        return cls(folder / HOST_CERT, folder / HOST_KEY, folder / CA_CERT, folder / CRL)

    @classmethod
    def of_options(
        cls, folder: Path | None, cert: Path | None, key: Path | None, ca: Path | None, crl: Path | None
    ) -> TlsPaths | None:
        """As --tls-dir and the others name them, None where none is given; one file counts more than the folder's.

        UserError: some are missing.
        """
        if folder is not None:
            usual = cls.of_folder(folder)
            return cls(cert or usual.cert, key or usual.key, ca or usual.ca, crl or usual.crl)
        single = {"--tls-cert": cert, "--tls-key": key, "--tls-ca": ca}
        if not any(single.values()) and crl is None:
            return None
        if cert is None or key is None or ca is None:
            lacking = ", ".join(name for name, path in single.items() if path is None)
            raise UserError(f"{lacking} is missing: TLS needs --tls-cert, --tls-key and --tls-ca, or --tls-dir")
        return cls(cert, key, ca, crl)

    @property
    def all(self) -> tuple[Path, ...]:
        """Those that there are to be."""
        return (self.cert, self.key, self.ca) + (() if self.crl is None else (self.crl,))


@dataclass(frozen=True, slots=True)
class TlsFields:
    """What --tls-dir and the others say, as a part of a program's configuration."""

    tls_dir: Path | None  # None: see tls
    tls_cert: Path | None
    tls_key: Path | None
    tls_ca: Path | None
    tls_crl: Path | None  # None: nothing is revoked
    insecure: bool  # also beyond this host

    @property
    def tls(self) -> TlsPaths | None:
        """This host's certificate and whom it trusts; None: control is not secured. UserError: half of it is given."""
        return TlsPaths.of_options(self.tls_dir, self.tls_cert, self.tls_key, self.tls_ca, self.tls_crl)


def find_identity(fields: dict[str, Any]) -> None:
    """Put this host's own certificate in the place of options that nobody has given (fields of TlsFields).

    UserError: options for certificates beside the one for none.
    """
    given = [name for name in ("tls_dir", "tls_cert", "tls_key", "tls_ca", "tls_crl") if fields.get(name) is not None]
    if fields.get("insecure"):
        if given:
            option = "--" + given[0].replace("_", "-")
            raise UserError(f"--insecure is for a program without certificates, and {option} is given: leave one away")
    elif not given:
        fields["tls_dir"] = usual_folder()


def usual_folder() -> Path | None:
    """Where this host's certificate is, if $INFINISWAP_TLS_DIR says so or it lies where it is looked for."""
    if given := os.environ.get(FOLDER_VARIABLE):
        return None if given == NO_FOLDER else Path(given).absolute()
    own, *others = tls_dirs()
    if os.path.exists(own / HOST_CERT):  # noqa: PTH110 - Path.exists() raises where one may not look
        return own
    return next(
        (each for each in others if all(os.access(each / file, os.R_OK) for file in (HOST_CERT, HOST_KEY))), None
    )


def how_to_get_one() -> str:
    """What a user who has no certificate is told to do."""
    hidden = next((each for each in tls_dirs() if each.is_dir() and not os.access(each / HOST_KEY, os.R_OK)), None)
    if hidden is not None and not os.environ.get(FOLDER_VARIABLE):
        return f"this user can read none in {hidden} (the key may be its group's: mode 0640)"
    return "'infiniswap cluster invite HOST' makes the first host of a cluster, and says what is to be typed on HOST"


def make_folder(folder: Path) -> None:
    """The folder, for its owner alone if it is new. UserError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error.strerror}", ExitCode.RESOURCES) from None


def write_file(path: Path, content: bytes, *, secret: bool = False) -> None:
    """Put content in the place of path in one step, on the disk before that. UserError.

    secret: for its owner alone, and the group that might read what was there, such as the daemon's.
    """
    mode, group = 0o600 if secret else 0o644, -1
    with contextlib.suppress(OSError):
        before = path.stat()
        if secret and before.st_mode & stat.S_IRGRP:
            mode, group = 0o640, before.st_gid
    try:
        replace_file(path, content, sync=True, mode=mode, group=group)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}", ExitCode.RESOURCES) from None


def read_file(path: Path, what: str) -> bytes:
    """What is in it; UserError that names it as what."""
    try:
        with path.open("rb") as stream:
            content = stream.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        raise UserError(f"{what} {path} does not exist", ExitCode.NOT_FOUND) from None
    except OSError as error:
        raise UserError(f"cannot read {what} {path}: {error.strerror}", ExitCode.RESOURCES) from None
    if len(content) > FILE_BYTES_MAX:
        raise UserError(f"{what} {path} is longer than {FILE_BYTES_MAX} bytes")
    return content


def check_key_file(path: Path) -> None:
    """UserError when others than its owner and its group could read the key, or anybody else write it."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise UserError(f"the key {path} does not exist", ExitCode.NOT_FOUND) from None
    except OSError as error:
        raise UserError(f"cannot read the key {path}: {error.strerror}", ExitCode.RESOURCES) from None
    if mode & _OTHERS:
        raise UserError(
            f"the key {path} is open to others (mode {stat.S_IMODE(mode):04o}): chmod 600 {path}, "
            "and issue it anew if somebody may have read it",
            ExitCode.REFUSED,
        )
