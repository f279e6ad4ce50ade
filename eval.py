"""Evaluate a model: `python eval.py niah --checkpoint runs/quickstart --lengths 1k,16k`; `--help` shows the options."""

import sys

from neuralmem.evaluation.cli import main

if __name__ == "__main__":
    sys.exit(main())
