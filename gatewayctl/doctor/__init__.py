"""Examines the whole way from the gateway to a user's session on the remote host."""
