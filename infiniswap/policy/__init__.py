"""Decisions without I/O: clock and random numbers are passed in, so that a test or a simulator can run them."""
