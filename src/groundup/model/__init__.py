"""Architectures: the Qwen3-shaped decoder, its reward and value heads, and count-based n-grams."""
