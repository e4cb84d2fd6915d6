"""The report: one page that shows a whole run to a reader who has never built a model."""
