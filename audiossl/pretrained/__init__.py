"""Embedded models, one folder each (package data)."""
