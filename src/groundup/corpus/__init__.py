"""Pages to documents, a folder for each activity: acquire, archive, extract, annotate, classify, dedup, select."""
