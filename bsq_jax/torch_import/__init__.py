"""Reading the authors' PyTorch checkpoints."""
