"""The demo: two donors and a device on this machine, and what they do, shown."""
