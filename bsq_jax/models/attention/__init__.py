"""Attention: visibility, blocks, implementations."""
