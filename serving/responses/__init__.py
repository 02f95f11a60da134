"""Responses that are kept: for conversations that go on, and for whoever polls."""
