"""The engine: it runs plans, judges claims, and writes down what happened."""
