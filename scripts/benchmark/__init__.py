"""What scripts/bench runs: contenders, workloads, measuring and reporting."""
