"""Stage 6: store expert weights in fewer bytes."""
