"""The trainer of ITDA dictionaries."""
