"""A task's life: submitted and charged, claimed, advanced step by step, ended with a result or a refund."""
