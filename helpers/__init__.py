"""The programs that sshd starts, and the broker that answers them."""
