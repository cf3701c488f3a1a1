"""Adversarial training: what a discriminator's norm tells it that no single sample shows."""
