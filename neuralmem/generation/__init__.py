"""Text out of a model: a prompt is read into the state, then one token after another, while the memory learns."""
