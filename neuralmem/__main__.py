"""`python -m neuralmem`: what is installed, which backends run, and why the others do not."""

import neuralmem
from neuralmem.backends import report

if __name__ == "__main__":
    print(f"{'neuralmem':13} {neuralmem.__version__}\n{report()}")
