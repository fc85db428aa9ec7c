"""Analysis: dictionaries compared with atoms, with models and with one another."""
