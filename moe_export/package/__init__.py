"""Stage 9: the bundle, written whole or not at all, and read without trusting it."""
