"""One training loop, its optimizers, schedules, checkpoints and order of data; objectives are pure functions."""
