"""What a device with shards gives: the command behind scripts/bench --shards."""
