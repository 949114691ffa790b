"""The REST door: routes, the envelope, who is calling, how often. It knows the topics, not their tables."""
