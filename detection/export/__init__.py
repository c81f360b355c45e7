"""Export of a trained detector to runtimes without this package: ONNX, and torch.export's `.pt2`."""
