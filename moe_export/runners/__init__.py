"""Run a model: eager PyTorch, or ONNX Runtime. Only ``eager`` imports torch."""
