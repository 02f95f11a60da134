"""What this machine can serve, how fast, and what stands in the way."""
