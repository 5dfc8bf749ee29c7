"""Label sets (package data)."""
