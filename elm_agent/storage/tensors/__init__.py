"""Tensors under their content hashes: in a folder, or in any file system of fsspec."""
