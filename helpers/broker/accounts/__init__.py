"""The user accounts that sshd sees."""
