"""Thresholds over the annotations, applied late and in one place."""
