"""DNS SRV records as a list of peers: _infiniswap._tcp.DOMAIN (RFC 2782).

Priority and weight are left aside: which donor a slab goes to is decided by the memory that it has free.
"""

from __future__ import annotations

import ipaddress

from infiniswap.shared.address import HostPort
from infiniswap.shared.file_sd import TARGETS_MAX

SERVICE = "_infiniswap._tcp"
LOOKUP_TIMEOUT_S = 5.0
DNS_PORT = 53


class NoAnswerError(Exception):
    """The name service has no list now; says why."""


async def look_up(domain: str, server: HostPort | None) -> tuple[frozenset[HostPort], float]:
    """Targets of domain's records, and for how many seconds they hold. server: None for those of /etc/resolv.conf.

    NoAnswerError; also where there is no such record, for that is what a name service says that has lost its data.
    """
    import dns.asyncresolver  # takes its time to import, and few devices need it
    import dns.exception
    import dns.name
    import dns.rdatatype
    import dns.rdtypes.IN.SRV
    import dns.resolver

    try:
        resolver = dns.asyncresolver.Resolver(configure=server is None)
        if server is not None:
            resolver.nameservers = [str(ipaddress.ip_address(server.host))]
            resolver.port = server.port
        name = dns.name.from_text(f"{SERVICE}.{domain.rstrip('.')}.")
        answer = await resolver.resolve(name, dns.rdatatype.SRV, lifetime=LOOKUP_TIMEOUT_S)
    except (dns.exception.DNSException, OSError, ValueError) as error:
        raise NoAnswerError(" ".join(str(error).split()) or type(error).__name__) from None
    found: set[HostPort] = set()
    for record in answer:
        if not isinstance(record, dns.rdtypes.IN.SRV.SRV) or record.target == dns.name.root:
            continue
        if record.port == 0 or len(found) >= TARGETS_MAX:
            continue
        found.add(HostPort(record.target.to_text(omit_final_dot=True).lower(), record.port))
    if not found:
        raise NoAnswerError("its records name no host")
    return frozenset(found), float(answer.rrset.ttl if answer.rrset is not None else 0)
