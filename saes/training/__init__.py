"""Training: the trainers, their steps and their optimisers."""
