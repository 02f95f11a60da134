"""The native CPU core."""
