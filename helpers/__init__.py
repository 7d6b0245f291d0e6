"""What sshd starts, and the broker that answers it."""
