"""Sequences, blocks and the scheduler: plain Python, no arrays."""
