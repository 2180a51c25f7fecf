"""Stage 8: compare the written model with eager PyTorch, routing included."""
