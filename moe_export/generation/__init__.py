"""Generation with a key/value cache in ONNX Runtime, without PyTorch."""
