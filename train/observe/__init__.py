"""What a run reports, and how it judges whether a step is sound."""
