"""What a training step minimises: the parts that all objectives share, and one file an objective."""
