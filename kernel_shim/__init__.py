"""Kernel side: nbd by netlink, swap, soft-RoCE links."""
