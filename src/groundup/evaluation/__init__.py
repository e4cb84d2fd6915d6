"""Evaluation: likelihoods, tests made from held-out documents, and the statistics behind every figure."""
