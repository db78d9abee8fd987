"""Memories that travel between banks, as files."""
