"""Recipes at a size that runs in seconds on a CPU (the tests run them)."""
