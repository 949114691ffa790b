"""What workers do besides tasks: periodic jobs, and the delivery of webhooks."""
