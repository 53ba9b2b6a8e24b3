"""The demonstration on the embedded digits."""
