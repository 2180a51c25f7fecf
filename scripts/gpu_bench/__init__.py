"""What scripts/bench_gpu.py is made of."""
