"""What the user's own hosts can do: page-ins from each peer, from the backup and from the local disk."""
