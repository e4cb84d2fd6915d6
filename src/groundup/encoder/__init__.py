"""The auto-encoding model: BERT, masking, and a reader that finds answers as spans of a context."""
