"""Commands: one file for each, with the options that no other command has."""
