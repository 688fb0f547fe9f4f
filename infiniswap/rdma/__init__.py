"""What both ends of an RDMA path share: discovery, addressing, what they tell each other. Pure, without libibverbs."""
