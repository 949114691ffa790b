"""The jobs of the sandbox and their status over time."""
