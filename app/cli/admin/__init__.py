"""Commands that read and change what the database holds."""
