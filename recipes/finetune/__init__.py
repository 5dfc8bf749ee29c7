"""Recipes that fine-tune a model on a published data set, by a published protocol."""
