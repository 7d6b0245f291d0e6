"""``python3 -m gatewayctl``."""

from gatewayctl.cli import main

main()
