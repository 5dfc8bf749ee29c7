"""Typed values: YAML text to dataclasses, and the keys of a recipe. Imports no torch."""
