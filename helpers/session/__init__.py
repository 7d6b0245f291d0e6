"""The session helper: sshd's ForceCommand."""
