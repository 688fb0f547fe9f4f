"""The memory daemon: lends its host's free memory as slabs over NBD."""
