"""Training: the engines, their handlers, checkpoints, and weights from elsewhere."""
