"""The providers that generate: their clients, and the circuit breaker before them."""
