"""What a bundle does, in torch, NumPy, nibabel and MONAI alone: this folder is copied into each bundle."""
