"""Formats of SSH and OpenSSH: pure, without I/O."""
