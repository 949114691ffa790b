"""Routes of administrators. Every route requires the scope `admin`."""
