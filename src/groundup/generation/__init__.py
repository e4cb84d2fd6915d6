"""Prefill and decode states, sampling, the one engine, and talking to a model."""
