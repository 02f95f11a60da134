"""Measurements of an executor, step by step, without HTTP and without the scheduler."""
