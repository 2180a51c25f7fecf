"""The grouped matrix product in Triton, its variants, and their compilation ahead of time."""
