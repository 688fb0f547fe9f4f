"""A cluster in one process: many donors and devices in simulated seconds, deciding by the modules of policy/."""
