"""The custom ops: contract, NumPy reference, PyTorch and ONNX forms."""
