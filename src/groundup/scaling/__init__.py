"""Scaling: ladders of runs, the laws fitted to them, and what a run costs."""
