"""Webhooks: endpoints, signing secrets, and the outbox of messages about the ends of tasks."""
