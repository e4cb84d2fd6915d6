"""Answers to questions, found as spans of a context: SQuAD files, exact match and F1, a reader and what it must beat."""
