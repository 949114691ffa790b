"""The audit: invariants of the books, each as one SQL query that finds violations."""
