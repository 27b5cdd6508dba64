"""Making a model hold: one training loop, the recipes of :mod:`holdfast.defenses` inside it."""
