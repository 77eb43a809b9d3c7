"""What a training step minimises: what all objectives share, and one file for each objective."""
