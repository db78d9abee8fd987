"""Encryption at rest: keys, sealing, rotation."""
