"""Pages to documents: sources, crawling, text from HTML, annotations, duplicates, filters, mixture."""
