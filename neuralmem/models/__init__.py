"""Whole networks and their checkpoints."""
