"""How long it takes to start a device whose log is as full as it gets: its map, and the chain behind that."""
