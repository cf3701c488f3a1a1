"""Cross-validation: one training per fold, what they find on held-out cases, and the model made of them."""
