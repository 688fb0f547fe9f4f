"""NBD: the protocol's numbers, negotiation for both ends, a blocking client, the listener. Transmission is C."""
