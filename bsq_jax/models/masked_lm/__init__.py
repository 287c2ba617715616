"""The masked language model and how it generates."""
