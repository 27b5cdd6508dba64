"""Check an exported program before torch reads it: a file must not be able to run code.

``torch.export.load`` falls back to plain pickle, starts compiled libraries found in the archive,
evaluates symbolic expressions as Python, imports modules that a tree description names, and looks
up any attribute of ``torch`` as an operator. Only files that we refuse need any of this. The
archive is rewritten from exactly the entries that were checked: what is checked is what is loaded.
"""

from __future__ import annotations

import ast
import io
import json
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from holdfast.errors import ModelError

_FORBIDDEN_ENTRY = re.compile(r"data/aotinductor/|\.so$|\.dll$|\.dylib$|custom_obj_|opaque_obj_")
_OPERATORS = [
    re.compile(r"torch\.ops\.(aten|prims|quantized_decomposed)\.(?!from_file)\w+\.\w+"),
    re.compile(r"torch\.ops\.higher_order\.(wrap_with_set_grad_enabled|wrap_with_autocast|cond)"),
    re.compile(r"torch\._?sym_\w+"),
    re.compile(r"math\.[a-z]\w*"),
    re.compile(
        r"_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|pow|neg|pos|abs|lshift|rshift"
        r"|l[te]|g[te]|eq|ne|and_|or_|not_|xor|index)"
    ),
]
_DUNDER = re.compile(r"(^|\.)__")
_ARITHMETIC = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Call, ast.keyword),
    *(ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.Name, ast.Constant, ast.expr_context),
)
_FUNCTION = re.compile(r"[A-Z]\w*")
_TREES = {None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}


def checked_archive(path: Path) -> io.BytesIO:
    """The exported program in ``path``, rewritten from checked entries.

    Raises:
        ModelError: where it is no such file, or holds something that could run code.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {info.filename: archive.read(info) for info in archive.infolist()}
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise ModelError(
            f"Cannot read {path} as a torch.export program ({error}). Save the model again with "
            "torch.export.save(program, 'model.pt2')."
        ) from None
    for name, content in entries.items():
        _check_entry(path, name, content)
    copy = io.BytesIO()
    with zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    copy.seek(0)
    return copy


@contextmanager
def weights_only() -> Iterator[None]:
    """Every ``torch.load`` inside refuses all but tensors and plain containers."""
    names = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ[names[0]] = "1"
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _check_entry(path: Path, name: str, content: bytes) -> None:
    if _FORBIDDEN_ENTRY.search(name):
        raise _refused(path, f"it contains {name!r}: compiled code or pickled objects")
    if not name.endswith(".json"):
        return
    try:
        tree = json.loads(content)
    except (UnicodeDecodeError, ValueError, RecursionError):
        raise _refused(path, f"its entry {name!r} is damaged") from None
    for key, value in _pairs(tree):
        _check_pair(path, key, value)


def _pairs(tree: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value at any depth."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield from node.items()
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)


def _check_pair(path: Path, key: str, value: Any) -> None:
    if key in ("target", "as_operator") and isinstance(value, str):
        if _DUNDER.search(value) or not any(form.fullmatch(value) for form in _OPERATORS):
            raise _refused(path, f"it uses the operator {value!r}, which is not a plain tensor one")
    elif key == "expr_str" and not _is_arithmetic(str(value)):
        raise _refused(path, f"its shape expression {value!r} is not plain arithmetic")
    elif key in ("in_spec", "out_spec") and value:
        _check_tree(path, str(value))


def _is_arithmetic(text: str) -> bool:
    """Numbers, symbols and calls of capitalised functions: nothing to reach into or to evaluate."""
    try:
        nodes = list(ast.walk(ast.parse(text.strip(), mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    words = [n.id for n in nodes if isinstance(n, ast.Name)]
    words += [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    calls = [n.func for n in nodes if isinstance(n, ast.Call)]
    return (
        all(isinstance(node, _ARITHMETIC) for node in nodes)
        and all(re.fullmatch(r"\w+", word) and "__" not in word for word in words)
        and all(isinstance(f, ast.Name) and _FUNCTION.fullmatch(f.id) for f in calls)
    )


def _check_tree(path: Path, text: str) -> None:
    try:
        pairs = list(_pairs(json.loads(text)))
    except ValueError:
        raise _refused(path, "the description of its inputs or outputs is damaged") from None
    for key, value in pairs:
        if key == "type" and value not in _TREES:
            raise _refused(
                path, f"its inputs or outputs are a {value!r}; one tensor in, one tensor out"
            )
        if key == "context" and not _is_names(value):
            raise _refused(path, "the description of its inputs or outputs holds more than names")
        if key == "__enum__":
            raise _refused(path, "the description of its inputs or outputs imports a module")


def _is_names(context: Any) -> bool:
    """What plain containers need: nothing, or the keys of a dictionary."""
    if isinstance(context, str):
        try:
            context = json.loads(context)
        except ValueError:
            return False
    is_plain = isinstance(context, list) and all(isinstance(key, str) for key in context)
    return context is None or is_plain


def _refused(path: Path, reason: str) -> ModelError:
    return ModelError(
        f"{path} is refused because {reason}. A program saved by torch.export.save from a network "
        "with one input tensor and one output tensor has none of this; export it again."
    )
