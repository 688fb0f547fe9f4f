"""The device service: what `infiniswap device serve` runs."""
