"""What surrounds a run: its processes, the devices, the work of a token, a compiled program."""
