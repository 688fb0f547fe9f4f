"""Infiniswap: neighbours' free memory as a Linux block device (Gu et al., NSDI'17), in userspace."""

__version__ = "0.1.0"
