"""Stage 5: rewrite the graph where its behaviour proves that a rewrite is right."""
