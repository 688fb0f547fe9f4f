"""What reading pages before they are asked for gains where the way to a peer is long, and what wrong guesses cost."""
