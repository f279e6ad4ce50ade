"""What `eval.py` can do, a file each: a docstring whose first line is its help, `add_options`, `check` and `run`."""
