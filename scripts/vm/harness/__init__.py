"""Boots QEMU machines that run scenarios on a real kernel; standard library only, so that it runs before any set-up."""
