"""The process that starts and watches the others, and does what takes root."""
