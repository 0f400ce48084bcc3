"""The training loop: step, optimizer, strategies, checkpoints."""
