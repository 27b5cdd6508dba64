"""Algorithms that prove or refute properties of graphs."""
