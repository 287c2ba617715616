"""Evaluation: metrics, frozen networks, evaluators and their reports."""
