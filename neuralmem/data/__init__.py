"""Text sources, packing and synthetic tasks: all that yields a `Batch`. Lightning is imported in `module.py` only."""
