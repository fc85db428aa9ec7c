"""What features decide: edit, steer, unlearn, tune, circuits, prune."""
