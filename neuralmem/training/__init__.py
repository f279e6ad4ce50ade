"""Training: the LightningModule, its callbacks, the command line. Imports nothing, so that `--help` is quick."""
