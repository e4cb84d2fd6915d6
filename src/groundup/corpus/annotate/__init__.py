"""Measurements on every document; nothing is dropped here."""
