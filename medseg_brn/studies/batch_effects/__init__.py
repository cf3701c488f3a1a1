"""Gene expression with batch effects: what a norm, a correction and the two together leave of each."""
