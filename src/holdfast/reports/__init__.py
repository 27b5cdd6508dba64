"""Reports: a fold over a run's records, and one renderer per file, found by suffix."""
