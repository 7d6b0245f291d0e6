"""The subcommands of ``gatewayctl``, one module for each."""
