"""Stage 1, load: from what the user named to a PyTorch model in eval mode with example inputs."""
