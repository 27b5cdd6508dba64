"""Recipes that make a model more robust: one per file, found by its module name."""
