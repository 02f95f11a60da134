"""Checks of a running server's HTTP interface, one per promise of the wire: `flashlet selftest`."""
