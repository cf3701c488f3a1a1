"""Models for other programs: a MONAI bundle, an ONNX file, a program of torch.export."""
