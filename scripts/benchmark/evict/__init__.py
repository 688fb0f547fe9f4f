"""What a device loses when a donor takes a slab back, and how soon the donor has its memory: scripts/bench --evict."""
