"""The runtime directory and processes."""
