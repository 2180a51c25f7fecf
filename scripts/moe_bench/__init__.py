"""Side-by-side timing of one MoE layer in this library and in its peers."""
