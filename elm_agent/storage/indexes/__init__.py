"""Derived indexes of retrieval keys, and what feeds them."""
