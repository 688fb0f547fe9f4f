"""What the device, the memory daemon, the kernel shim and the command line share."""
