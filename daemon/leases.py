"""Table of leases: who holds which slabs, until when. Pure: the clock is handed in, memory is only named by its offset.

A lease lives until its deadline, which each heartbeat puts off. Then it has lapsed: it is as good as before, and its
next heartbeat takes it up again, but it is given up as soon as somebody else needs the memory, and when its grace is
over. Only durations are ever told to a device, so its clock need not agree with this one.

Of a token only the SHA-256 digest is kept, so nothing that prints or dumps a lease can give the token away, and looking
a token up takes a time that tells nothing about how much of it was right.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field

from infiniswap.daemon.allocator import is_block_size
from infiniswap.daemon.refused import Refusal, RefusedError
from infiniswap.shared.clock import Clock

PAGE_BYTES = 4096
EXPORT_PREFIX = "lease-"
TOKEN_BYTES = 32  # of randomness


@dataclass(slots=True, eq=False)
class Lease:
    """A device's relation to this daemon."""

    lease_id: str
    token_digest: bytes = field(repr=False)
    device: str
    device_id: str
    size_bytes: int
    slab_bytes: int
    created_s: float
    deadline_s: float
    heard_s: float = 0.0  # when it was renewed by a heartbeat last, or half a life without one was counted
    host: str = ""  # the address from which it was taken
    owner: str = ""  # the name in the certificate that took it (roles.called); "" where control is not secured
    export: int = -1  # number in the engine, set once the export is open
    slabs: dict[int, int] = field(default_factory=dict)  # device slab -> offset in the arena
    punchable: set[int] = field(default_factory=set)  # those that the engine may punch out: never registered
    leaving: dict[int, float] = field(default_factory=dict)  # slabs to be given up, until when
    activity: dict[int, float] = field(default_factory=dict)  # page I/O per second, as its device told last
    taken: int = 0  # slabs that it has lost by force
    requests: int = 0  # of pages, as the data path had counted when it was looked at last

    @property
    def slab_count(self) -> int:
        """Slabs of the device, the last of which may be cut short by the device's end."""
        return -(-self.size_bytes // self.slab_bytes)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


class LeaseTable:
    """All leases, found by id and token or by the name of their export.

    A lease past its deadline stays good until it is removed: only then does its memory become somebody else's, and a
    daemon that stood still itself has the chance to forgive() before it looks.

    Invariant: a lease is in the table or it is not; what renews it and what removes it both go by that, and neither
    waits for anything in between. So a heartbeat that was answered is one of a lease that lives.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        ttl_s: float,
        grace_s: float = 0.0,
        leases_max: int = 256,
        lease_slabs_max: int = 1 << 18,
    ) -> None:
        """clock: monotonic seconds; ttl_s: life without heartbeat; grace_s: kept for so long after it; then limits."""
        self._clock = clock
        self.ttl_s = ttl_s
        self.grace_s = grace_s
        self.leases_max = leases_max
        self.lease_slabs_max = lease_slabs_max
        self._leases: dict[str, Lease] = {}
        self._by_digest: dict[bytes, Lease] = {}
        self._nobody = secrets.token_bytes(hashlib.sha256().digest_size)

    def __len__(self) -> int:
        return len(self._leases)

    def leases(self) -> list[Lease]:
        """All leases that have not been removed, expired ones included."""
        return list(self._leases.values())

    def create(
        self, *, device: str, device_id: str, size_bytes: int, slab_bytes: int, host: str = "", owner: str = ""
    ) -> tuple[Lease, str]:
        """A new lease and its token, which is told only here. RefusedError: bad sizes or no lease slot left."""
        self._check(size_bytes, slab_bytes)
        if len(self._leases) >= self.leases_max:
            raise RefusedError(Refusal.UNAVAILABLE, f"all {self.leases_max} leases of this daemon are taken")
        token = secrets.token_urlsafe(TOKEN_BYTES)
        now = self._clock()
        lease = Lease(
            lease_id=secrets.token_hex(8),
            token_digest=_digest(token),
            device=device,
            device_id=device_id,
            size_bytes=size_bytes,
            slab_bytes=slab_bytes,
            created_s=now,
            deadline_s=now + self.ttl_s,
            heard_s=now,
            host=host,
            owner=owner,
        )
        self._leases[lease.lease_id] = lease
        self._by_digest[lease.token_digest] = lease
        return lease, token

    def adopt(self, lease: Lease, *, remaining_s: float) -> None:
        """Take up a lease of the daemon before this one, with the life that it had left (below 0: none)."""
        now = self._clock()
        lease.created_s, lease.deadline_s = now, now + min(remaining_s, self.ttl_s)
        lease.heard_s = now
        self._leases[lease.lease_id] = lease
        self._by_digest[lease.token_digest] = lease

    def authenticate(self, lease_id: str, token: str) -> Lease | None:
        """The lease of that id if the token is its own; None tells no more than that."""
        lease = self._leases.get(lease_id)
        expected = self._nobody if lease is None else lease.token_digest
        if not hmac.compare_digest(expected, _digest(token)) or lease is None:
            return None
        return lease

    def by_export(self, name: str) -> Lease | None:
        """The lease whose export has that name."""
        if not name.startswith(EXPORT_PREFIX):
            return None
        return self._by_digest.get(_digest(name.removeprefix(EXPORT_PREFIX)))

    def is_live(self, lease: Lease) -> bool:
        """Whether the lease is in the table."""
        return self._leases.get(lease.lease_id) is lease

    def remaining_s(self, lease: Lease) -> float:
        """Seconds until the lease ends without a heartbeat, never below 0."""
        return max(0.0, lease.deadline_s - self._clock())

    def leaving_ms(self, lease: Lease) -> dict[int, int]:
        """Slabs that the lease is to give up, and how many milliseconds are left for that."""
        now_s = self._clock()
        return {slab: max(0, int((until_s - now_s) * 1000)) for slab, until_s in sorted(lease.leaving.items())}

    def has_lapsed(self, lease: Lease) -> bool:
        """Whether the lease's time is over, though it may still be in the table."""
        return self._clock() >= lease.deadline_s

    def renew(self, lease: Lease) -> bool:
        """A heartbeat: the lease lives another ttl_s. False: it has ended, and nothing brings it back."""
        if not self.is_live(lease):
            return False
        lease.heard_s = self._clock()
        lease.deadline_s = lease.heard_s + self.ttl_s
        return True

    def renew_by_pages(self, lease: Lease) -> bool:
        """Its pages have moved: it lives another ttl_s. True: half of one has passed without a heartbeat."""
        now = self._clock()
        lease.deadline_s = max(lease.deadline_s, now + self.ttl_s)
        missing = now - lease.heard_s > self.ttl_s / 2
        if missing:
            lease.heard_s = now
        return missing

    def forgive(self, seconds: float) -> None:
        """Put every deadline off: the daemon itself stood still and could not have heard a heartbeat."""
        for lease in self._leases.values():
            lease.deadline_s += seconds

    def lapsed(self) -> list[Lease]:
        """Leases past their deadline that are still in the table: those who have been silent longest come first."""
        now = self._clock()
        late = [lease for lease in self._leases.values() if now >= lease.deadline_s]
        return sorted(late, key=lambda lease: lease.deadline_s)

    def expired(self) -> list[Lease]:
        """Of the lapsed leases those whose grace is over, too."""
        now = self._clock()
        return [lease for lease in self.lapsed() if now >= lease.deadline_s + self.grace_s]

    def remove(self, lease: Lease) -> bool:
        """Forget the lease; its id and token mean nothing from now on. False: somebody else has done so before."""
        if not self.is_live(lease):
            return False
        del self._leases[lease.lease_id]
        del self._by_digest[lease.token_digest]
        return True

    def check_index(self, lease: Lease, index: int) -> None:
        """Refuse an index that is no slab of the lease's device."""
        if not 0 <= index < lease.slab_count:
            raise RefusedError(
                Refusal.INVALID, f"slab index {index} is outside the device's {lease.slab_count} slabs (from 0)"
            )

    def _check(self, size_bytes: int, slab_bytes: int) -> None:
        if not is_block_size(slab_bytes):
            raise RefusedError(Refusal.INVALID, "slab_bytes must be a power of two between 1 MiB and 1 GiB")
        if size_bytes <= 0 or size_bytes % PAGE_BYTES:
            raise RefusedError(Refusal.INVALID, f"size_bytes must be a positive multiple of {PAGE_BYTES}")
        if -(-size_bytes // slab_bytes) > self.lease_slabs_max:
            raise RefusedError(
                Refusal.INVALID,
                f"a device of {size_bytes} bytes in slabs of {slab_bytes} has more than {self.lease_slabs_max} slabs; "
                "take larger slabs",
            )
