"""What can be wrong with a property, said with the place where it is wrong."""

from holdfast.errors import PropertyError

__all__ = ["PropertyError"]
