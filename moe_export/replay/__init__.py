"""Run a bundle's recorded example where the bundle runs, and compare, without PyTorch."""
