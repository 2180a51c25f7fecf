"""Time a bundle: whole runs and its MoE layers, beside what the machine can do."""
