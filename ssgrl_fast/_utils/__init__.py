"""Helpers that every folder of the package may import: files, checks of arguments, the state of PyTorch."""
