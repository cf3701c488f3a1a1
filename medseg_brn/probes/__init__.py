"""What a normalization does inside a network, and how steady training is: small functions that measure it."""
