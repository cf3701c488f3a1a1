"""Random patches for training: sampling and augmentation. Tensors start here."""
