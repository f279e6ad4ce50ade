"""What does not learn while it reads: norms, convolutions, attention, and the handling of masks and documents."""
