"""What chapters hand to each other and what people bring: readers, token files, labels, the mixture."""
