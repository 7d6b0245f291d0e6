"""The keys that sshd accepts for a user."""
