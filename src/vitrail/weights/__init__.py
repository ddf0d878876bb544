"""Weights files: found, read, checked, and their tensors' names translated into ours."""
