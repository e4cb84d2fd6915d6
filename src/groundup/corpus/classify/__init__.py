"""Small linear classifiers of quality, toxicity and domain."""
