"""The HTTP routes of the sandbox: SEE2AI's own, and those of its operator."""
