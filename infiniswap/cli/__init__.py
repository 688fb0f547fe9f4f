"""The infiniswap command: one file per verb."""
