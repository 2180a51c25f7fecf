"""Stage 2: which modules are MoE layers, what they compute, and the proof of it."""
