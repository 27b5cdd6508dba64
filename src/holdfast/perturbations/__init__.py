"""Sets of allowed changes: one file each, found by name (see :mod:`holdfast.registry`)."""
