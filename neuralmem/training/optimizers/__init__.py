"""Optimizers of slow weights beyond torch's: what Nested Learning makes of momentum, and several acting as one."""
