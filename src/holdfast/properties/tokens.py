"""Read the parenthesised text of VNN-LIB: tokens whose places are only worked out for errors."""

from __future__ import annotations

import gzip
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from holdfast.properties.errors import PropertyError

TOKEN = re.compile(r'[()]|"[^"\n]*"|[^\s()";\[]+(?:\[[^\]\n]*\])?|\[[^\]\n]*\]|;[^\n]*|\S')


def read_text(path: str | Path) -> str:
    """Text of a file, decompressed when it is gzip (by its first bytes, whatever its name).

    Raises:
        PropertyError: no such file, or neither text nor gzip.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8")
    except UnicodeDecodeError as error:
        raise PropertyError(
            f"cannot read the property file {str(path)!r}: it is no text; the network's file comes "
            "first, then the property's"
        ) from error
    except (OSError, EOFError) as error:
        words = getattr(error, "strerror", None) or error
        raise PropertyError(f"cannot read the property file {str(path)!r}: {words}") from error


@dataclass(slots=True)
class Tokens:
    """A cursor over the tokens of ``text``; comments (``; ...``) are left out."""

    text: str
    items: list[str] = field(init=False)
    at: int = 0

    def __post_init__(self) -> None:
        """Split the text; an end mark ``""`` saves every look-ahead its bounds check."""
        self.items = [t for t in TOKEN.findall(self.text) if t[0] != ";"]
        self.items.append("")

    def peek(self) -> str:
        """The next token, ``""`` at the end of the text."""
        return self.items[self.at]

    def next(self) -> str:
        """Take the next token.

        Raises:
            PropertyError: the text ends here.
        """
        token = self.items[self.at]
        if not token:
            self.fail("the text ends in the middle of an expression: a ')' is missing")
        self.at += 1
        return token

    def expect(self, wanted: str) -> None:
        """Take ``wanted`` or fail with what stands there instead."""
        found = self.items[self.at]
        if found != wanted:
            self.fail(
                f"expected {wanted!r}, found {found!r}"
                if found
                else f"expected {wanted!r}, found the end of the text"
            )
        self.at += 1

    def fail(self, message: str, at: int | None = None) -> NoReturn:
        """Raise ``PropertyError`` at the place of token number ``at`` (the next)."""
        at = self.at if at is None else at
        starts = [m.start() for m in TOKEN.finditer(self.text) if m[0][0] != ";"]
        start = starts[at] if at < len(starts) else len(self.text)
        line = self.text.count("\n", 0, start) + 1
        raise PropertyError(message, line, start - self.text.rfind("\n", 0, start))
