"""Webhooks: who is told of a task's end, with whose secret, and the outbox from which it is told."""
