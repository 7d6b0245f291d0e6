"""The process that starts and watches the others, and runs privileged operations."""
