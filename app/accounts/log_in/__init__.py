"""The gateway's own log-in: passwords, second factors and refresh tokens, and the public keys of another log-in."""
