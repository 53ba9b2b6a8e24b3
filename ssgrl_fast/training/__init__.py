"""Training: the Lightning task, the network it trains, losses, optimizers, checkpoints and runs."""
