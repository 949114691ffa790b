"""SEE2AI, the upstream: its actions, its words for states, and the only client that speaks HTTP to it."""
