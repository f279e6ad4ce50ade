"""Whole blocks of a model: one file per layer, each a `Layer`."""
