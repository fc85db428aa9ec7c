"""Training: the trainers, their steps and their optimizers."""
