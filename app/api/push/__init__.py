"""Streams of task changes for callers: Server-Sent Events and WebSocket."""
