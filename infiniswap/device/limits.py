"""Limits and defaults of a device: what its options may say, and what they say by themselves."""

PAGE_BYTES = 4096
SLAB_BYTES_MIN = 1 << 20
SLAB_BYTES_MAX = 1 << 30
SLAB_BYTES_DEFAULT = 64 << 20
DEVICE_BYTES_MAX = 16 << 40
SLABS_MAX = 1 << 18  # also the most that a daemon grants one lease
PENDING_BYTES_MIN = 1 << 20
PENDING_BYTES_MAX = 64 << 30
PENDING_BYTES_DEFAULT = 64 << 20
PEERS_MAX = 64  # ISW_PEERS_MAX of the engine
TCP_LISTENERS_MAX = 16
HOT_PAGE_IOS_DEFAULT = 20.0  # HotSlab of the paper, section 4.3
# What a peer has not answered by then goes another way. A fifth of the kernel's own deadline (10 s in device attach),
# for a request may wait for another first, and for the backup afterwards.
REQUEST_DEADLINE_MS_DEFAULT = 2000
MAP_POLICIES = ("hot", "eager", "never")
BACKUP_LAYOUTS = ("raw", "log")
BACKUP_ENGINES = ("auto", "io_uring", "threads")
PREFETCH = ("off", "auto")
TRANSPORTS = ("auto", "rdma", "tcp")
ON_BACKUP_ERROR = ("degrade", "stop")
SCRUB_BYTES_S_MIN = PAGE_BYTES
SCRUB_BYTES_S_MAX = 1 << 40
SCRUB_BYTES_S_DEFAULT = 64 << 20
RDMA_POLL_US_DEFAULT = 50  # many round trips of a real network, and less than waking up costs
