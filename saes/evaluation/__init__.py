"""Evaluation: scores of dictionaries beside their nulls."""
