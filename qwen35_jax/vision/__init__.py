"""What reads images and videos: batches of patches, the tower, and the place of its output among the tokens."""
