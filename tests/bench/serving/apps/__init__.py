"""Servers that are not ours, one a file. Each is a script for its peer's own environment and imports nothing of us."""
