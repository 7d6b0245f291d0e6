"""What the gateway's processes say to each other, and what all of them share."""
