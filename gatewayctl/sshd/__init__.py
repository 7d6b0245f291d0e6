"""Stock sshd: its configuration, its mount namespace, its sockets and its log."""
