"""Training: tasks, recipes, the loop, the optimizer, checkpoints and the monitor."""
