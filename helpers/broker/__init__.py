"""The broker: the one process that holds the gateway's key and talks to the remote over SSH."""
