"""Responses that are wrong on purpose, and SEE2AI's forms of an error."""
