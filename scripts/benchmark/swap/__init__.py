"""Compares what programs get from a machine that swaps: to this device, to disks, to memory that is compressed."""
