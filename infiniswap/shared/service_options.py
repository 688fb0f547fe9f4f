"""Options that both programs have, described once for both."""

from __future__ import annotations

from infiniswap.shared.errors import UserError
from infiniswap.shared.logs import LOG_FORMATS, LOG_LEVELS
from infiniswap.shared.options import Option
from infiniswap.shared.values import boolean, listen_address, path


def _log_level(what: str, value: object) -> str:
    if not isinstance(value, str) or value.lower() not in LOG_LEVELS:
        raise UserError(f"{what} must be one of {', '.join(LOG_LEVELS)}")
    return value.lower()


def _log_format(what: str, value: object) -> str:
    if value not in LOG_FORMATS:
        raise UserError(f"{what} must be one of {', '.join(LOG_FORMATS)}")
    return str(value)


METRICS_LISTEN = Option(
    name="metrics_listen",
    field="metrics_listen",
    convert=listen_address(),
    metavar="HOST:PORT",
    help="Serve /metrics for Prometheus there, to anybody who can connect, and nothing else; port 0: any free one.",
    default=None,
    shown="not served",
    example='"127.0.0.1:7403"',
)
WEB = Option(
    name="web",
    field="web",
    convert=listen_address(),
    metavar="HOST:PORT",
    help="Serve a web page that shows this program there, read-only, to anybody who can connect; port 0: any free one.",
    default=None,
    shown="not served",
    example='"127.0.0.1:7480"',
)
LOG_LEVEL = Option(
    name="log_level",
    field="log_level",
    convert=_log_level,
    metavar="LEVEL",
    help=f"What is logged on stderr: {', '.join(LOG_LEVELS)}.",
    default="info",
    live=True,
)
LOG_FORMAT = Option(
    name="log_format",
    field="log_format",
    convert=_log_format,
    choices=LOG_FORMATS,
    help="Lines on stderr for people, or an object a line; in the journal both have their priorities.",
    default="text",
)
TLS_DIR = Option(
    name="tls_dir",
    field="tls_dir",
    convert=path,
    metavar="DIR",
    help="Speak TLS with certificates on control, by the files of 'infiniswap cluster' in there.",
    default=None,
    shown="/etc/infiniswap/tls where there is a certificate, for users other than root ~/.config/infiniswap/tls first",
    example='"/etc/infiniswap/tls"',
)
TLS_CERT = Option(
    name="tls_cert",
    field="tls_cert",
    convert=path,
    metavar="FILE",
    help="Instead of the folder's: this host's certificate, PEM, with the chain behind it.",
    default=None,
    example='"/etc/pki/tls.crt"',
)
TLS_KEY = Option(
    name="tls_key",
    field="tls_key",
    convert=path,
    metavar="FILE",
    help="Its key, PEM, which nobody else can read.",
    default=None,
    example='"/etc/pki/tls.key"',
)
TLS_CA = Option(
    name="tls_ca",
    field="tls_ca",
    convert=path,
    metavar="FILE",
    help="Certificates of the authority whose hosts are let in, PEM.",
    default=None,
    example='"/etc/pki/ca.crt"',
)
TLS_CRL = Option(
    name="tls_crl",
    field="tls_crl",
    convert=path,
    metavar="FILE",
    help="Its revocation list, PEM.",
    default=None,
    shown="nothing is revoked",
    example='"/etc/pki/ca.crl"',
)
INSECURE = Option(
    name="insecure",
    field="insecure",
    convert=boolean,
    help="Speak in the clear, without certificates, also with other hosts: whoever is on the network may take part.",
    default=False,
    flags=("--insecure/--no-insecure",),
    switch=True,
    shown="on loopback alone, where there is no certificate",
)
TLS = (TLS_DIR, TLS_CERT, TLS_KEY, TLS_CA, TLS_CRL, INSECURE)
