"""The network: its sizes, its layers, and sampling from it."""
