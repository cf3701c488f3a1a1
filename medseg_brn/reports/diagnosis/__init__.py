"""What a run's own records say went wrong, and what to do about it."""
