"""The sessions on the remote host."""
