"""Stage 7b: TensorRT builds an engine of the packed graph, in a process of its own."""
