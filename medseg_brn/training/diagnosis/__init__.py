"""What a run finds out about itself: where numbers end, what it was trained on, how well that is fitted."""
