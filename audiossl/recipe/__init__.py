"""Recipes: found, read, checked, written back."""
