"""What people bring: one reader of files for all chapters. It knows nothing of a corpus or a tokenizer."""
