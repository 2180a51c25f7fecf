"""Parts of scripts/bench_model.py: the model, who runs it, and what is kept."""
