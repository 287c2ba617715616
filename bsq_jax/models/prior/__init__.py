"""The prior: a network in whole numbers, and the coder of its probabilities."""
