"""What both ends of an RDMA path share: discovery and addressing. Pure, without libibverbs."""
