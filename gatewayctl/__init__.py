"""The operator's command, ``gatewayctl``."""
