"""Many dictionaries off one stream: the grid, the run that resumes, its results, table and plot."""
