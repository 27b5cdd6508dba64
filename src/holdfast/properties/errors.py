"""What can be wrong with a property, said with the place where it is wrong."""

from __future__ import annotations


class PropertyError(ValueError):
    """A property cannot be read or does not fit the network it is asked of.

    Attributes:
        line: line of the text where the trouble starts, from 1; 0 when it has no place.
        column: column in that line, from 1; 0 when it has no place.
    """

    def __init__(self, message: str, line: int = 0, column: int = 0) -> None:
        self.line, self.column = line, column
        super().__init__(f"line {line}, column {column}: {message}" if line else message)
