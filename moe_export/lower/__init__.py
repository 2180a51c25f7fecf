"""Stage 4: from the traced graph to one that keeps the op contract and nothing of PyTorch."""
