"""Stage 7: write the graph and its weights."""
