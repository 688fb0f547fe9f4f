"""What scripts/bench --vm does: this device over RDMA and TCP against what the RDMA port can carry, in one VM."""
