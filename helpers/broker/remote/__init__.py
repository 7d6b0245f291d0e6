"""Connections to the remote host. No other package uses paramiko."""
