"""Stage 6: write the graph and its weights."""
