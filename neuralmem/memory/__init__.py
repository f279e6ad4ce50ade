"""What learns while it reads: one file per memory rule, each a `Memory`."""
