"""ImageNette from photographs to a table: a captioner, a generator and classifiers, all trained here."""
