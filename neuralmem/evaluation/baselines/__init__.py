"""What memory is compared with: one file each, found by its name (evaluation/baseline.py says what is in it)."""
