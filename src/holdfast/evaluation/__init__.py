"""Evaluation: what the results of attacks and proofs say, and how surely."""
