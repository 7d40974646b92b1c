"""Rows and columns on disk: what stage one writes and stage two reads."""
