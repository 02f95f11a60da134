"""Requests: scheduling, HTTP, metrics and the command line."""
