"""Typed graphs of networks: capture, run, bound."""
