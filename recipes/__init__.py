"""Recipes (YAML), found by name through importlib.resources."""
