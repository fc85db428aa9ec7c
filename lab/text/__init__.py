"""Text: `Corpus`, and one file for each source of documents."""
