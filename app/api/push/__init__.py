"""Changes of tasks pushed to callers: Server-Sent Events and WebSocket."""
