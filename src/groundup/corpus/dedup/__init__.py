"""Exact and near duplicates, lines of a site's template, overlap with test sets."""
