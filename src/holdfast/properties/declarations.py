"""Declarations of networks in VNN-LIB 2.0: inputs, inner values, outputs, relations."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, NoReturn

from holdfast.properties.record import Network, Relation, Tensor
from holdfast.properties.tokens import Tokens

NAME = re.compile(r"[A-Za-z]\w*$")
FLOAT_TYPES = {"real", "float16", "float32", "float64", "bfloat16", "float", "double", "half"}

Kind = Literal["input", "hidden", "output"]
KINDS: dict[str, Kind] = {
    "declare-input": "input",
    "declare-hidden": "hidden",
    "declare-output": "output",
}


@dataclass(slots=True)
class Declarations:
    """The networks declared so far.

    Attributes:
        tokens: The text.
        networks: In order.
        tensors: Every declared value by name, and whether it is an input.
        used: Elements of inputs and of other values so far.
    """

    tokens: Tokens
    networks: list[Network] = field(default_factory=list)
    tensors: dict[str, tuple[Tensor, bool]] = field(default_factory=dict)
    used: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})

    def network(self) -> None:
        """``f (equal-to g)? (declare-input ...)+ (declare-hidden ...)* (declare-output ...)+``."""
        tokens = self.tokens
        name = self.new_name({n.name for n in self.networks})
        found: dict[Kind, list[Tensor]] = {"input": [], "hidden": [], "output": []}
        relation, relation_at = None, tokens.at
        while tokens.peek() == "(":
            tokens.next()
            match tokens.next():
                case "declare-input" | "declare-hidden" | "declare-output" as word:
                    self.value(KINDS[word], found)
                case "equal-to" | "isomorphic-to" as kind:
                    if relation is not None:
                        tokens.fail(f"network {name} has a relation already", tokens.at - 1)
                    relation_at = tokens.at
                    relation = Relation(kind, self.earlier_network().name)
                case other:
                    tokens.fail(
                        f"{other!r} is not allowed in declare-network; allowed: equal-to, "
                        "isomorphic-to, declare-input, declare-hidden, declare-output",
                        tokens.at - 1,
                    )
            tokens.expect(")")
        if not found["input"] or not found["output"]:
            tokens.fail(f"network {name} needs at least one input and one output")
        inputs, hidden, outputs = (tuple(found[k]) for k in ("input", "hidden", "output"))
        network = Network(name, inputs, outputs, relation, hidden)
        self.check_relation(network, relation_at)
        self.networks.append(network)

    def value(self, kind: Kind, found: dict[Kind, list[Tensor]]) -> None:
        """One more value of a network."""
        if kind == "hidden" and found["output"]:
            self.fail("inner values are declared before the outputs")
        found[kind].append(self.tensor(kind))

    def earlier_network(self) -> Network:
        """The network named by a relation, which has none itself."""
        name = self.tokens.next()
        network = next((net for net in self.networks if net.name == name), None)
        if network is None:
            self.fail(f"network {name!r} is not declared before")
        if network.relation is not None:
            self.fail(
                f"network {name!r} is {network.relation.kind} {network.relation.to!r} itself: "
                "name that one"
            )
        return network

    def check_relation(self, network: Network, at: int) -> None:
        """Related networks have the same shapes, equal ones also the same types."""
        if network.relation is None:
            return
        kind, to = network.relation.kind, network.relation.to
        other = next(net for net in self.networks if net.name == to)
        for what, mine, theirs in (
            ("inputs", network.inputs, other.inputs),
            ("outputs", network.outputs, other.outputs),
        ):
            if len(mine) != len(theirs):
                self.tokens.fail(
                    f"{network.name} has {len(mine)} {what}, {to} has {len(theirs)}: it cannot be "
                    f"{kind} {to}",
                    at,
                )
            for a, b in zip(mine, theirs, strict=True):
                self.check_alike(a, b, kind, at)
        named = {h.onnx_name: h for h in other.hidden}
        for h in network.hidden:
            self.check_alike(h, named.get(h.onnx_name, h), kind, at)

    def check_alike(self, a: Tensor, b: Tensor, kind: str, at: int) -> None:
        """Two corresponding values may differ in their names only."""
        same_type = kind != "equal-to" or a.element_type.lower() == b.element_type.lower()
        if a.shape != b.shape or not same_type:
            self.tokens.fail(
                f"{a.name} is {_written(a)}, {b.name} is {_written(b)}: networks that are {kind} "
                "each other declare the same",
                at,
            )

    def new_name(self, taken: set[str]) -> str:
        """A name that is well formed and new."""
        name = self.tokens.next()
        if not NAME.match(name):
            self.fail(f"{name!r} is not a name (a letter, then letters, _ and digits)")
        if name in taken:
            self.fail(f"{name!r} is declared twice")
        return name

    def tensor(self, kind: Kind) -> Tensor:
        """``X Real [1,5] "name in the file"``; the name is needed for inner values."""
        tokens = self.tokens
        name = self.new_name(set(self.tensors))
        element_type = tokens.next()
        if element_type.lower() not in FLOAT_TYPES:
            self.fail(
                f"element type {element_type!r} is not supported; allowed: Real, float16, float32, "
                "float64"
            )
        shape = tokens.next()
        if not re.fullmatch(r"\[[\d,\s]*\]", shape):
            self.fail(f"expected a shape such as [1,5], found {shape!r}")
        dims = tuple(int(d) for d in re.findall(r"\d+", shape))
        label = tokens.next().strip('"') if tokens.peek()[:1] == '"' else None
        if kind == "hidden" and not label:
            tokens.fail(f'{name} needs the name of its value in the ONNX file, as in "relu_3"')
        if tokens.peek() == "initialized":
            tokens.fail(
                f"{name} takes its value from the file: assert that it equals the stored "
                "value instead"
            )
        is_input = kind == "input"
        tensor = Tensor(name, dims, self.used[is_input], label, element_type)
        self.used[is_input] += tensor.size
        self.tensors[name] = tensor, is_input
        return tensor

    def fail(self, message: str) -> NoReturn:
        """An error at the token that was taken last."""
        self.tokens.fail(message, self.tokens.at - 1)


def _written(tensor: Tensor) -> str:
    return f"{tensor.element_type} [{','.join(map(str, tensor.shape))}]"
