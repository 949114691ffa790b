"""Column types as migrations name them. What a migration once meant by them must never change."""

from app.tables import ID, LONG_TEXT, PROMPT, Json, UtcTime, binary_string

__all__ = ["ID", "LONG_TEXT", "PROMPT", "Json", "UtcTime", "binary_string"]
