"""Post-training: instruction pairs, preferences and the methods that learn from them."""
