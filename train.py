"""Train a model: `python train.py --config configs/quickstart.yaml`; `--help` shows the options."""

import sys

from neuralmem.training.cli import main

if __name__ == "__main__":
    sys.exit(main())
