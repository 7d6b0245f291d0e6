"""Stock sshd: its configuration, its surroundings and its log."""
