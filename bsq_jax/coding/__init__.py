"""From tokens to files and back."""
