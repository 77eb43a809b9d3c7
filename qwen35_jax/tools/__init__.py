"""What runs around a model: joining processes, the devices it runs on, and what a step costs on them."""
