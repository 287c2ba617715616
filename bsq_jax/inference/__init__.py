"""A trained model at work: the Python API, streams, generation."""
