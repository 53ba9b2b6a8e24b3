"""What every room uses and none owns: files, checks of arguments, PyTorch's own state."""
