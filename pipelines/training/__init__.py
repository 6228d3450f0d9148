"""The training loop and what it calls: optimisers, checkpoints, guards, signals, trackers, debug mode."""
