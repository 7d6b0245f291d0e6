"""What people are warned of wherever they look: at the start, at each login, in every status."""

ANYONE = "GATEWAY_ACCEPT_ANY_KEY is on: anyone who reaches the port can become any user of the remote host"
