"""HTML pages that need no network: one file for each, one stylesheet."""
