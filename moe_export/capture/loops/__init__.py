"""Loops over tokens in linear attention and state spaces, captured as ONNX ``Scan``."""
