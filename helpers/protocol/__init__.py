"""The protocol between the gateway's processes, and the code that all of them share."""
