"""Questions answered by training several models: comparison, ablations, the demonstration."""
