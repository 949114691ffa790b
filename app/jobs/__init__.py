"""What workers do beside tasks: periodic jobs, and the delivery of webhooks."""
