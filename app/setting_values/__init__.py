"""Reads the text of settings and finds what cannot be right."""
