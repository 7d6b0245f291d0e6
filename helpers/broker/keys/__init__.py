"""Which keys let a user in."""
