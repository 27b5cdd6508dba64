"""Named orders of attacks, as data."""
