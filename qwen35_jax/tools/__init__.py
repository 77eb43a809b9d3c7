"""What answers questions about a run without running it: the devices, the work of a token, a compiled program."""
