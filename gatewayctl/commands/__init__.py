"""One module per ``gatewayctl`` subcommand."""
