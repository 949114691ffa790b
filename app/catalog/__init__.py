"""What is sold and for how much: models, prices, typical durations."""
