"""Minibatches of one group each: what a norm retains of the groups' difference, and of a batch effect."""
