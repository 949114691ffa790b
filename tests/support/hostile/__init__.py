"""A hostile user, or a stranger without a credential, as a process of its own: `python -m tests.support.hostile`."""
