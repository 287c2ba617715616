"""Frozen networks that judge pictures, and the loading of their weights."""
