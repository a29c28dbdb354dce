"""The configuration: its keys, their bounds, and where it comes from."""
