"""Programs to read and run, from the quickstart on."""
