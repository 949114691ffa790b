"""The catalog: models, their prices and their typical durations."""
