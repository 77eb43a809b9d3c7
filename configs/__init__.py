"""Run files, one run each, and the quickstart that strings them together."""
