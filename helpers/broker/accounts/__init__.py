"""The users, as sshd sees them."""
