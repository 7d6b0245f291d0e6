"""The way to the remote host; paramiko is used here alone."""
