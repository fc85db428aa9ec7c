"""Runs: the one loop, consumers, run folders and trackers."""
