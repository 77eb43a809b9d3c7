"""Programs to read and run. README.md beside this file lists them."""
