"""How long the ways to a remote prompt take, measured in the lab beside one another; ``python -m bench`` runs it."""
