"""Weights, configurations, tokenizers and one forward step. Knows no request, no HTTP and no time."""
