"""The table of scripts/bench: what is wanted of the device, what was measured, and whether that meets it."""
