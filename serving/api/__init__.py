"""The HTTP side: wire types, endpoints, errors and server-sent events."""
