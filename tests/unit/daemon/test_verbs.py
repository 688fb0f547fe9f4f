"""How queue pairs are addressed, what becomes of that in pyverbs, and what a user reads when registering fails."""

from __future__ import annotations

import errno
import ipaddress
from types import SimpleNamespace
from typing import Any

import pytest

from infiniswap.daemon.libibverbs import PyVerbs, initial_attributes, load_verbs, ready_attributes
from infiniswap.daemon.verbs import Connection, VerbsError, plan_connections, registration_failure
from infiniswap.rdma.devices import Gid, GidType, Port
from infiniswap.rdma.path import (
    ACK_TIMEOUT_MAX,
    RETRIES,
    RNR_RETRIES,
    RNR_TIMER,
    RdmaUnavailableError,
)
from infiniswap.shared.path_messages import LinkLayer, PathEnd, QueuePair
from tests.support.fake_verbs import OTHER_HOST, port, remote_end

SUBNET_A = ipaddress.IPv6Address("fe80::1")
SUBNET_B = ipaddress.IPv6Address("fec0::2")
IB_GID = Gid(0, SUBNET_A, GidType.IB_OR_ROCE_V1)
IB_PORT = Port("mlx5_0", 2, LinkLayer.INFINIBAND, "ACTIVE", 9, (IB_GID,))


def plan(remote: PathEnd, at: Port | None = None, mtu_bytes: int = 4096, reads_max: int = 16) -> list[Connection]:
    """The plan of a port's first GID of the right kind."""
    at = at or port()
    return plan_connections(
        link_layer=at.link_layer, port=at, gid=at.gids[-1], mtu_bytes=mtu_bytes, reads_max=reads_max, remote=remote
    )


def infiniband_end(gid: ipaddress.IPv6Address = SUBNET_A, lid: int = 12) -> PathEnd:
    """A device on InfiniBand."""
    return PathEnd(LinkLayer.INFINIBAND, gid, lid, 4096, 16, (QueuePair(1, 2), QueuePair(3, 4)))


def test_each_pair_meets_its_own() -> None:
    """Pair i goes to pair i, each with a sequence number of its own that nobody can guess."""
    first, second = plan(remote_end())
    assert (first.remote, second.remote) == (QueuePair(17, 1000), QueuePair(18, 2000))
    numbers = {connection.psn for _ in range(50) for connection in plan(remote_end())}
    assert len(numbers) > 90
    assert all(0 <= number < 1 << 24 for number in numbers)


def test_ethernet_is_addressed_by_gid() -> None:
    """RoCE always has a global route, and no LID even if the other end sends one."""
    (connection, _) = plan(PathEnd(LinkLayer.ETHERNET, OTHER_HOST, 77, 4096, 16, remote_end().queue_pairs))
    assert connection.global_route
    assert connection.gid_index == 1
    assert connection.remote_gid == OTHER_HOST
    assert connection.remote_lid == 0


def test_infiniband_is_addressed_by_lid() -> None:
    """Within a subnet the LID is all; into another one a global route is added to it."""
    (near, _) = plan(infiniband_end(), IB_PORT)
    assert (near.global_route, near.remote_lid, near.port) == (False, 12, 2)
    (far, _) = plan(infiniband_end(SUBNET_B), IB_PORT)
    assert (far.global_route, far.remote_lid) == (True, 12)


def test_ends_that_do_not_meet() -> None:
    """Another link layer, or an InfiniBand port without a LID: refused before a queue pair is made."""
    with pytest.raises(RdmaUnavailableError, match="rxe0/1 is Ethernet, but the other end's is InfiniBand"):
        plan(infiniband_end())
    with pytest.raises(RdmaUnavailableError, match="no LID"):
        plan(infiniband_end(lid=0), IB_PORT)


@pytest.mark.parametrize(
    ("own", "remote", "agreed"), [(1024, 4096, 1024), (4096, 1024, 1024), (4096, 4096, 4096), (256, 512, 256)]
)
def test_the_smaller_mtu_counts(own: int, remote: int, agreed: int) -> None:
    """Packets larger than the other end's MTU would never be taken."""
    assert plan(remote_end(mtu_bytes=remote), mtu_bytes=own)[0].mtu_bytes == agreed


@pytest.mark.parametrize(("own", "remote", "agreed"), [(16, 16, 16), (16, 4, 4), (2, 16, 2), (16, 0, 1)])
def test_no_more_reads_than_both_can(own: int, remote: int, agreed: int) -> None:
    """Outstanding READs are what both ends can, and one at least."""
    assert plan(remote_end(reads_max=remote), reads_max=own)[0].reads_served == agreed


def test_too_little_lockable_memory_is_explained() -> None:
    """ENOMEM of a registration is nearly always RLIMIT_MEMLOCK: the sentence says how to raise it."""
    sentence = registration_failure(VerbsError("registering memory: Cannot allocate memory", errno.ENOMEM), 64 << 20)
    assert sentence.startswith("64 MiB of slab memory cannot be locked for RDMA")
    assert "ulimit -l" in sentence
    assert "LimitMEMLOCK" in sentence
    assert registration_failure(VerbsError("registering memory: Bad address", errno.EFAULT), 1 << 20) == (
        "1 MiB of slab memory cannot be registered for RDMA: registering memory: Bad address"
    )


@pytest.fixture
def verbs() -> PyVerbs:
    """The real pyverbs; it is there wherever the Debian package is, hardware or not."""
    pytest.importorskip("pyverbs.device")
    return load_verbs()


def test_attributes_of_pyverbs_on_ethernet(verbs: PyVerbs) -> None:
    """Every value arrives in the structure that goes to ibv_modify_qp."""
    (connection, _) = plan(remote_end(OTHER_HOST), mtu_bytes=1024, reads_max=5)
    first = initial_attributes(verbs, connection)
    enums = verbs.enums
    assert first.port_num == 1
    assert first.qp_access_flags == enums.IBV_ACCESS_REMOTE_READ | enums.IBV_ACCESS_REMOTE_WRITE
    attributes = ready_attributes(verbs, connection)
    assert attributes.path_mtu == enums.IBV_MTU_1024
    assert attributes.dest_qp_num == 17
    assert attributes.rq_psn == 1000
    assert attributes.sq_psn == connection.psn
    assert attributes.max_dest_rd_atomic == 5
    assert attributes.min_rnr_timer == RNR_TIMER
    assert (attributes.timeout, attributes.retry_cnt) == (ACK_TIMEOUT_MAX, RETRIES)
    assert attributes.rnr_retry == RNR_RETRIES
    address = attributes.ah_attr
    assert (address.is_global, address.port_num, address.sgid_index, address.hop_limit) == (1, 1, 1, 64)
    assert ipaddress.IPv6Address(str(address.dgid)) == OTHER_HOST


def test_attributes_of_pyverbs_on_infiniband(verbs: PyVerbs) -> None:
    """Within a subnet: LID, port, and no global route."""
    (connection, _) = plan(infiniband_end(), IB_PORT)
    address = ready_attributes(verbs, connection).ah_attr
    assert (address.is_global, address.dlid, address.port_num) == (0, 12, 2)


def test_a_host_without_rdma(verbs: PyVerbs) -> None:
    """Opening a device that is not there is a VerbsError, not an error of pyverbs."""
    with pytest.raises(VerbsError, match="RDMA device nosuch0 cannot be opened"):
        verbs.open("nosuch0")


@pytest.mark.parametrize(
    ("number", "code", "text"),
    [
        (12, errno.ENOMEM, "registering memory: Cannot allocate memory"),
        (-22, errno.EINVAL, "registering memory: Invalid argument"),
        (-1, None, "registering memory: Failed to register a MR"),
        (None, None, "registering memory: Failed to register a MR"),
    ],
)
def test_errors_of_pyverbs(number: int | None, code: int | None, text: str) -> None:
    """The errno is found where there is one, whatever its sign; -1 means that there is none."""

    class PyverbsError(Exception):
        pass

    modules: dict[str, Any] = {name: SimpleNamespace() for name in ("addr", "cq", "device", "mr", "pd", "qp")}
    modules["enums"] = SimpleNamespace(IBV_ACCESS_REMOTE_READ=4, IBV_ACCESS_REMOTE_WRITE=2, IBV_ACCESS_LOCAL_WRITE=1)
    modules["pyverbs_error"] = SimpleNamespace(PyverbsError=PyverbsError)
    verbs = PyVerbs(modules)
    failure = PyverbsError("Failed to register a MR.")
    if number is not None:
        failure.error_code = number  # type: ignore[attr-defined]
    with pytest.raises(VerbsError) as error, verbs.translated("registering memory"):
        raise failure
    assert error.value.code == code
    assert str(error.value) == text
