"""Generation, and talking to a model."""
