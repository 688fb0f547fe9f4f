"""The verbs of this host through pyverbs, which comes with Debian, not with pip, and is imported only when needed."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from infiniswap.daemon.verbs import OWN_READS, Connection, VerbsError
from infiniswap.rdma.path import RdmaUnavailableError
from infiniswap.shared.path_messages import MTU_CODES

COMPLETIONS = 1  # of a completion queue that never sees one: the daemon posts nothing
WORK_REQUESTS = 1  # of each queue of a queue pair; 0 is refused by some hardware
_MODULES = ("addr", "cq", "device", "enums", "mr", "pd", "pyverbs_error", "qp")


def load_verbs() -> PyVerbs:
    """Libibverbs; RdmaUnavailableError when pyverbs is not installed here."""
    # A device that was unplugged has forgotten its objects by itself; without this, destroying them fails for ever.
    os.environ.setdefault("RDMAV_ALLOW_DISASSOC_DESTROY", "1")
    try:
        return PyVerbs({name: importlib.import_module(f"pyverbs.{name}") for name in _MODULES})
    except ImportError as error:
        raise RdmaUnavailableError(
            f"pyverbs cannot be imported ({error}): install the package python3-pyverbs, "
            "for the Python that Debian has, in an environment with --system-site-packages"
        ) from error


class PyVerbs:
    """The modules of pyverbs by name, and its errors as ours."""

    def __init__(self, modules: dict[str, Any]) -> None:
        self.addr = modules["addr"]
        self.cq = modules["cq"]
        self.device = modules["device"]
        self.mr = modules["mr"]
        self.pd = modules["pd"]
        self.qp = modules["qp"]
        self.enums = modules["enums"]
        self._error: type[Exception] = modules["pyverbs_error"].PyverbsError
        enums = self.enums
        self.remote_access = enums.IBV_ACCESS_REMOTE_READ | enums.IBV_ACCESS_REMOTE_WRITE
        self.region_access = self.remote_access | enums.IBV_ACCESS_LOCAL_WRITE

    @contextmanager
    def translated(self, what: str) -> Iterator[None]:
        """Turn an error of pyverbs into a VerbsError that says what could not be done."""
        try:
            yield
        except self._error as error:
            number = getattr(error, "error_code", -1)
            code = abs(number) if isinstance(number, int) and number not in (-1, 0) else None
            reason = str(error).rstrip(".") if code is None else os.strerror(code)
            raise VerbsError(f"{what}: {reason}", code) from error

    def open(self, name: str) -> PyDevice:
        """See Verbs.open."""
        with self.translated(f"RDMA device {name} cannot be opened"):
            return PyDevice(self, self.device.Context(name=name))


class PyDevice:
    """Device over pyverbs."""

    def __init__(self, verbs: PyVerbs, context: Any) -> None:
        self._verbs = verbs
        self._context = context
        with verbs.translated("the RDMA device cannot be asked"):
            self._reads_max = int(context.query_device().max_qp_rd_atom)

    @property
    def reads_max(self) -> int:
        """See Device.reads_max."""
        return self._reads_max

    def mtu_bytes(self, port: int) -> int:
        """See Device.mtu_bytes."""
        with self._verbs.translated(f"RDMA port {port} cannot be asked"):
            code = self._context.query_port(port).active_mtu
        return next((size for size, known in MTU_CODES.items() if known == code), min(MTU_CODES))

    def alive(self) -> bool:
        """See Device.alive. Asks for nothing about a port: soft-RoCE logs a line for each such question."""
        try:
            with self._verbs.translated("the RDMA device cannot be asked"):
                self._context.query_device()
        except VerbsError:
            return False
        return True

    def protection_domain(self) -> PyProtectionDomain:
        """See Device.protection_domain."""
        return PyProtectionDomain(self._verbs, self._context)

    def close(self) -> None:
        """See Device.close."""
        with self._verbs.translated("the RDMA device cannot be closed"):
            self._context.close()


class PyProtectionDomain:
    """ProtectionDomain over pyverbs, with the completion queue of its queue pairs."""

    def __init__(self, verbs: PyVerbs, context: Any) -> None:
        self._verbs = verbs
        with verbs.translated("there is no protection domain"):
            self._domain = verbs.pd.PD(context)
            self._completions = verbs.cq.CQ(context, COMPLETIONS)

    def register(self, address: int, length: int) -> PyRegion:
        """See ProtectionDomain.register."""
        with self._verbs.translated("registering memory"):
            region = self._verbs.mr.MR(self._domain, length, self._verbs.region_access, address=address)
        return PyRegion(self._verbs, region, address)

    def queue_pair(self) -> PyQueuePair:
        """See ProtectionDomain.queue_pair."""
        verbs = self._verbs
        with verbs.translated("there is no queue pair"):
            capacity = verbs.qp.QPCap(max_send_wr=WORK_REQUESTS, max_recv_wr=WORK_REQUESTS)
            wanted = verbs.qp.QPInitAttr(
                qp_type=verbs.enums.IBV_QPT_RC, scq=self._completions, rcq=self._completions, cap=capacity
            )
            return PyQueuePair(verbs, verbs.qp.QP(self._domain, wanted, None))

    def close(self) -> None:
        """See ProtectionDomain.close."""
        with self._verbs.translated("a protection domain cannot be closed"):
            self._completions.close()
            self._domain.close()


class PyRegion:
    """RegisteredMemory over pyverbs."""

    def __init__(self, verbs: PyVerbs, region: Any, address: int) -> None:
        self._verbs = verbs
        self._region = region
        self.address = address
        self.rkey = int(region.rkey)

    def close(self) -> None:
        """See RegisteredMemory.close."""
        with self._verbs.translated("memory cannot be deregistered"):
            self._region.close()


class PyQueuePair:
    """QueuePairHandle over pyverbs."""

    def __init__(self, verbs: PyVerbs, pair: Any) -> None:
        self._verbs = verbs
        self._pair = pair
        self.number = int(pair.qp_num)

    def connect(self, connection: Connection) -> None:
        """See QueuePairHandle.connect."""
        with self._verbs.translated("a queue pair cannot be connected"):
            self._pair.to_init(initial_attributes(self._verbs, connection))
            self._pair.to_rtr(ready_attributes(self._verbs, connection))
            self._pair.to_rts(ready_attributes(self._verbs, connection))

    def broken(self) -> bool:
        """See QueuePairHandle.broken."""
        enums = self._verbs.enums
        try:
            with self._verbs.translated("a queue pair cannot be asked"):
                attributes, _ = self._pair.query(enums.IBV_QP_STATE)
        except VerbsError:
            return True
        return bool(attributes.qp_state != enums.IBV_QPS_RTS)

    def close(self) -> None:
        """See QueuePairHandle.close."""
        with self._verbs.translated("a queue pair cannot be destroyed"):
            self._pair.close()


def initial_attributes(verbs: PyVerbs, connection: Connection) -> Any:
    """QPAttr for RESET to INIT."""
    attributes = verbs.qp.QPAttr(port_num=connection.port)
    attributes.qp_access_flags = verbs.remote_access
    return attributes


def ready_attributes(verbs: PyVerbs, connection: Connection) -> Any:
    """QPAttr for INIT to RTR and for RTR to RTS: of it, pyverbs takes what belongs to the step."""
    attributes = initial_attributes(verbs, connection)
    attributes.path_mtu = MTU_CODES[connection.mtu_bytes]
    attributes.dest_qp_num = connection.remote.number
    attributes.rq_psn = connection.remote.psn
    attributes.max_dest_rd_atomic = connection.reads_served
    attributes.min_rnr_timer = connection.rnr_timer
    address: dict[str, Any] = {"port_num": connection.port, "dlid": connection.remote_lid}
    if connection.global_route:
        address["is_global"] = 1
        address["gr"] = verbs.addr.GlobalRoute(
            # All eight groups written out: pyverbs understands no shorter form.
            dgid=verbs.addr.GID(connection.remote_gid.exploded.partition("%")[0]),
            sgid_index=connection.gid_index,
            hop_limit=connection.hop_limit,
        )
    else:
        address["is_global"] = 0
    attributes.ah_attr = verbs.addr.AHAttr(**address)
    attributes.sq_psn = connection.psn
    attributes.timeout = connection.timeout
    attributes.retry_cnt = connection.retries
    attributes.rnr_retry = connection.rnr_retries
    attributes.max_rd_atomic = OWN_READS
    return attributes
