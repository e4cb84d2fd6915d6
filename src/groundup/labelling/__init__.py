"""People compare two answers: a queue for several of them, a page, their agreement, and preferences to train on."""
