"""Stage 3: trace the model, its MoE layers lowered, into an ONNX graph."""
