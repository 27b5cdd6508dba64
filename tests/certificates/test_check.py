"""The checker accepts proofs and refuses tampered ones; its bounds survive exact arithmetic."""

from __future__ import annotations

import ast
import dataclasses
import io
import json
import zipfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from proof_tools import box_property, mlp, outputs, prove

from holdfast.certificates import CertificateError, Proof, Tree, check, load_proof, save_proof
from holdfast.certificates.check import Advice, Case, Derivation, cases
from holdfast.certificates.clauses import goals
from holdfast.certificates.enclosure import propagate
from holdfast.certificates.network import read_network
from holdfast.certificates.proof import INPUT, LEAF, digest
from holdfast.properties import parse_vnnlib

SOURCES = Path(check.__code__.co_filename).parent
LOW, HIGH = [-1.0] * 3, [1.0] * 3
TWO_CLAUSES = "(assert (or (>= Y_0 (+ Y_1 {})) (and (>= Y_0 9) (<= Y_1 -9))))"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    """Network, property and two proofs of it: by cuts of inputs, and one with cuts of neurons."""
    folder = tmp_path_factory.mktemp("proofs")
    network = mlp(folder / "net.onnx")
    x = np.random.default_rng(0).uniform(-1, 1, (20000, 3))
    y = outputs(network, x)
    limit = float((y[:, 0] - y[:, 1]).max())
    near = box_property(folder / "near.vnnlib", LOW, HIGH, TWO_CLAUSES.format(limit + 0.1))
    (goal, _), steps = goals(near.read_text()), read_network(network)
    root = Derivation(steps, goal).bounds([Case(0, ())], Advice(np.ones((1, 1)), np.zeros(0), {}))
    far = limit + 0.1 - float(root[0]) - 0.02  # not excluded without cuts, by 0.02
    easy = box_property(folder / "easy.vnnlib", LOW, HIGH, TWO_CLAUSES.format(far))
    return {
        "input": (network, near, prove(network, near)),
        "neuron": (network, easy, prove(network, easy, cut_neurons=True)),
    }


@pytest.mark.parametrize("kind", ["input", "neuron"])
def test_true_proofs_are_accepted(made: dict, kind: str, tmp_path: Path):
    network, prop, proof = made[kind]
    save_proof(proof, tmp_path / "p.proof")
    again = load_proof(tmp_path / "p.proof")
    for a, b in zip(proof.trees, again.trees, strict=True):
        for field in ("layer", "index", "point", "weights", "multipliers"):
            np.testing.assert_array_equal(getattr(a, field), getattr(b, field))
    result = check(tmp_path / "p.proof", network, prop)
    assert result.accepted, result.reason
    assert result.n_leaves == proof.n_leaves > 2
    assert 0 < result.smallest < np.inf
    assert (proof.trees[0].layer >= 0).any() == (kind == "neuron")


def change(proof: Proof, number: int = 0, **fields: object) -> Proof:
    trees = list(proof.trees)
    trees[number] = dataclasses.replace(trees[number], **fields)  # type: ignore[arg-type]
    return dataclasses.replace(proof, trees=tuple(trees))


def edit(values: np.ndarray, where: object, value: float) -> np.ndarray:
    values = values.copy()
    values[where] = value
    return values


def cut_short(proof: Proof) -> Proof:
    tree = proof.trees[0]
    return change(
        proof,
        layer=tree.layer[:-1],
        index=tree.index[:-1],
        point=tree.point[:-1],
        weights=tree.weights[:-1],
    )


def left_over(proof: Proof) -> Proof:
    tree = proof.trees[0]
    more = {
        k: np.append(getattr(tree, k), v).astype(getattr(tree, k).dtype)
        for k, v in (("layer", LEAF), ("index", 0), ("point", 0.0))
    }
    return change(proof, weights=np.concatenate([tree.weights, tree.weights[:1]]), **more)


def one_leaf(proof: Proof) -> Proof:
    tree = proof.trees[0]
    return change(
        proof,
        layer=np.array([LEAF], np.int32),
        index=tree.index[:1],
        point=tree.point[:1],
        weights=tree.weights[:1],
        multipliers=np.zeros(0),
    )


def side_dropped(proof: Proof) -> Proof:
    """The root's cut is taken out: its lower part must stand for the whole box."""
    tree = proof.trees[0]
    size, open_nodes = 0, 1
    for layer in tree.layer[1:]:
        size, open_nodes = size + 1, open_nodes + (1 if layer != LEAF else -1)
        if not open_nodes:
            break
    kept = slice(1, 1 + size)
    n_leaves = int((tree.layer[kept] == LEAF).sum())
    return change(
        proof,
        layer=tree.layer[kept],
        index=tree.index[kept],
        point=tree.point[kept],
        weights=tree.weights[:n_leaves],
    )


INPUT_TAMPERS = {
    "another network": (
        lambda p: dataclasses.replace(p, network_sha256="0" * 64),
        "another network",
    ),
    "another property": (
        lambda p: dataclasses.replace(p, property_sha256="0" * 64),
        "another prop",
    ),
    "tree cut short": (cut_short, "cut short"),
    "node left over": (left_over, "left over"),
    "all cases merged": (one_leaf, "not excluded"),
    "one side of a cut dropped": (side_dropped, "not excluded"),
    "cuts moved away": (lambda p: change(p, point=p.trees[0].point * 0 + 50.0), "not excluded"),
    "cuts moved a little": (lambda p: change(p, point=p.trees[0].point + 0.4), "not excluded"),
    "cuts of another input": (
        lambda p: change(p, index=(p.trees[0].index + 1) % 3),
        "not excluded",
    ),
    "input that does not exist": (lambda p: change(p, index=edit(p.trees[0].index, 0, 3)), "exist"),
    "negative input": (lambda p: change(p, index=edit(p.trees[0].index, 0, -1)), "exist"),
    "layer that does not exist": (lambda p: change(p, layer=edit(p.trees[0].layer, 0, 2)), "exist"),
    "negative weight": (lambda p: change(p, weights=-p.trees[0].weights), "negative"),
    "weights of zero": (lambda p: change(p, weights=edit(p.trees[0].weights, 7, 0.0)), "case 7 "),
    "weight not a number": (
        lambda p: change(p, weights=edit(p.trees[0].weights, 3, np.nan)),
        "case 3 ",
    ),
    "infinite weight": (
        lambda p: change(p, weights=edit(p.trees[0].weights, 3, np.inf)),
        "case 3 ",
    ),
    "weights of too many rows": (
        lambda p: change(p, weights=np.ones((p.n_leaves, 2))),
        "weights are",
    ),
    "clause left out": (lambda p: dataclasses.replace(p, trees=p.trees[:1]), "covers 1"),
    "clause too many": (lambda p: dataclasses.replace(p, trees=p.trees * 2), "covers 4"),
    "clauses swapped": (lambda p: dataclasses.replace(p, trees=p.trees[::-1]), "weights are"),
    "tree of the other clause": (
        lambda p: change(
            p,
            0,
            **{f.name: getattr(p.trees[1], f.name) for f in dataclasses.fields(Tree)}
            | {"weights": p.trees[1].weights[:, :1]},
        ),
        "not excluded",
    ),
    "multiplier without cut": (lambda p: change(p, multipliers=np.ones(1)), "more multipliers"),
    "slopes of the wrong shape": (lambda p: change(p, slopes={0: np.zeros((1, 8))}), "slopes of"),
    "slopes of no layer": (
        lambda p: change(p, slopes={-1: np.zeros((p.n_leaves, 3))}),
        "slopes of",
    ),
    "slopes from a later layer": (
        lambda p: change(p, range_slopes={(0, 1): np.zeros((16, 8))}),
        "slopes for",
    ),
    "slopes not numbers": (
        lambda p: change(
            p, slopes={1: np.full((int((p.trees[0].layer == LEAF).sum()), 8), np.nan)}
        ),
        "not excluded",
    ),
}

NEURON_TAMPERS = {
    "negative multiplier": (
        lambda p: change(p, multipliers=p.trees[0].multipliers - 1.0),
        "negative",
    ),
    "multiplier missing": (lambda p: change(p, multipliers=p.trees[0].multipliers[:-1]), "fewer"),
    "multipliers too large": (
        lambda p: change(p, multipliers=p.trees[0].multipliers + 1e6),
        "not excl",
    ),
    "multiplier not a number": (
        lambda p: change(p, multipliers=edit(p.trees[0].multipliers, 0, np.nan)),
        "not excluded",
    ),
    "neuron that does not exist": (
        lambda p: change(p, index=edit(p.trees[0].index, 0, 8)),
        "exist",
    ),
    "cuts of other neurons": (lambda p: change(p, point=p.trees[0].point + 1e3), "not excluded"),
    "all cases merged": (one_leaf, "not excluded"),
}


@pytest.mark.parametrize("name", INPUT_TAMPERS)
def test_tampered_input_proofs_are_refused(made: dict, name: str):
    tamper, words = INPUT_TAMPERS[name]
    network, prop, proof = made["input"]
    result = check(tamper(proof), network, prop)
    assert not result.accepted
    assert words in result.reason


@pytest.mark.parametrize("name", NEURON_TAMPERS)
def test_tampered_neuron_proofs_are_refused(made: dict, name: str):
    tamper, words = NEURON_TAMPERS[name]
    network, prop, proof = made["neuron"]
    result = check(tamper(proof), network, prop)
    assert not result.accepted
    assert words in result.reason


def rewritten(
    path: Path, header: dict | None = None, arrays: dict | None = None, drop: str = ""
) -> None:
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist() if name != drop}
    if header:
        parts["header.json"] = json.dumps(json.loads(parts["header.json"]) | header).encode()
    for name, values in (arrays or {}).items():
        buffer = io.BytesIO()
        np.save(buffer, values, allow_pickle=True)
        parts[name] = buffer.getvalue()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


FILE_TAMPERS = {
    "another version": lambda path: rewritten(path, {"version": 2}),
    "another format": lambda path: rewritten(path, {"format": "zip"}),
    "clauses miscounted": lambda path: rewritten(path, {"clauses": 3}),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-200]),
    "a byte changed": lambda path: path.write_bytes(
        bytes(b ^ (255 if i == 400 else 0) for i, b in enumerate(path.read_bytes()))
    ),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "array missing": lambda path: rewritten(path, drop="0/point.npy"),
    "pickled objects": lambda path: rewritten(path, arrays={"0/point.npy": np.array([None, 1])}),
    "not a number": lambda path: rewritten(path, arrays={"0/point.npy": np.array([np.nan])}),
    "text for numbers": lambda path: rewritten(path, arrays={"0/weights.npy": np.array(["1"])}),
    "lengths differ": lambda path: rewritten(path, arrays={"0/point.npy": np.zeros(3)}),
}


@pytest.mark.parametrize("name", FILE_TAMPERS)
def test_damaged_files_are_refused(made: dict, name: str, tmp_path: Path):
    network, prop, proof = made["input"]
    path = tmp_path / "p.proof"
    save_proof(proof, path)
    assert check(path, network, prop).accepted
    FILE_TAMPERS[name](path)
    assert not check(path, network, prop).accepted
    with pytest.raises(CertificateError):
        load_proof(path)


def test_changed_network_or_property_is_refused_even_with_matching_hashes(
    made: dict, tmp_path: Path
):
    network, prop, proof = made["input"]
    model = onnx.load(network)
    bias = next(t for t in model.graph.initializer if t.name == "b2")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32([0.3, 0]), "b2"))
    onnx.save(model, tmp_path / "net.onnx")
    other = digest((tmp_path / "net.onnx").read_bytes())
    result = check(dataclasses.replace(proof, network_sha256=other), tmp_path / "net.onnx", prop)
    assert "not excluded" in result.reason
    text = prop.read_text().replace("(assert (<= X_1 1.0))", "(assert (<= X_1 1.7))")
    (tmp_path / "p.vnnlib").write_text(text)
    changed = dataclasses.replace(proof, property_sha256=digest(text.encode()))
    assert "not excluded" in check(changed, network, tmp_path / "p.vnnlib").reason


def test_unreadable_network_or_property_is_a_refusal(made: dict, tmp_path: Path):
    network, prop, proof = made["input"]
    assert "cannot read" in check(proof, tmp_path / "none.onnx", prop).reason
    assert "cannot read" in check(proof, network, tmp_path / "none.vnnlib").reason


def test_a_violated_property_has_no_proof(made: dict, tmp_path: Path):
    network, _, _ = made["input"]
    x = np.random.default_rng(1).uniform(-1, 1, (5000, 3))
    y = outputs(network, x)
    top = float((y[:, 0] - y[:, 1]).max()) - 1e-9
    prop = box_property(tmp_path / "p.vnnlib", LOW, HIGH, f"(assert (>= Y_0 (+ Y_1 {top!r})))")
    with pytest.raises(CertificateError, match="more than 300 cases"):
        prove(network, prop, max_leaves=300)


@pytest.mark.parametrize("seed", range(4))
def test_bounds_lie_below_every_sampled_point_for_any_advice(tmp_path: Path, seed: int):
    """Random slopes, multipliers and cuts: none may lift a bound above what points reach."""
    rng = np.random.default_rng(seed)
    network = mlp(tmp_path / "n.onnx", (3, 10, 9, 2), seed)
    asserted = "(assert (and (>= Y_0 (+ Y_1 X_0)) (<= Y_1 0.3)))"
    (goal,) = goals(box_property(tmp_path / "p.vnnlib", LOW, HIGH, asserted).read_text())
    steps = read_network(network)
    x = rng.uniform(-1, 1, (4000, 3))
    first = x @ steps[1].weight.T + steps[1].bias
    rows = outputs(network, x) @ goal.of_outputs.T + x @ goal.of_inputs.T + goal.constants
    range_slopes = {(1, 0): rng.uniform(0, 1, (18, 10))}
    tight = 0
    for _ in range(30):
        neuron, side, point = (
            int(rng.integers(10)),
            bool(rng.integers(2)),
            float(rng.normal() * 0.2),
        )
        cut_input = (
            INPUT,
            int(rng.integers(3)),
            float(rng.uniform(-0.5, 0.5)),
            bool(rng.integers(2)),
        )
        case = Case(0, (cut_input, (0, neuron, point, side)))
        inside = (first[:, neuron] >= point) == side
        inside &= (x[:, cut_input[1]] >= cut_input[2]) == cut_input[3]
        weights = rng.uniform(0, 1, (1, 2))
        slopes = {k: rng.uniform(0, 1, (1, n)) for k, n in ((0, 10), (1, 9))}
        multipliers = np.array([rng.choice([0.0, 0.1, 1.0])])
        derivation = Derivation(steps, goal, range_slopes)
        (bound,) = derivation.bounds([case], Advice(weights, multipliers, slopes))
        if inside.any():
            least = (rows[inside] @ weights[0]).min()
            assert bound <= least
            tight += bound > least - 3
    assert tight > 5


def exact_outputs(network: Path, x: list[Fraction]) -> list[Fraction]:
    model = onnx.load(network)
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Gemm":
            w, b = weights[node.input[1]], weights[node.input[2]]
            x = [
                sum(
                    (Fraction(float(a)) * v for a, v in zip(row, x, strict=True)),
                    Fraction(float(c)),
                )
                for row, c in zip(w, b, strict=True)
            ]
        else:
            x = [max(v, Fraction(0)) for v in x]
    return x


@pytest.mark.parametrize("seed", range(20))
def test_rounding_never_lifts_a_bound_above_the_exact_value(tmp_path: Path, seed: int):
    """Boxes of one point, where weights of all magnitudes cancel, against rational arithmetic.

    Without its error terms the bound lies above the exact value for some of the seeds.
    """
    rng = np.random.default_rng(seed)
    network = mlp(tmp_path / "n.onnx", (3, 12, 12, 2), seed)
    model = onnx.load(network)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        values = values * 10.0 ** rng.integers(-6, 6, size=values.shape)
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
    onnx.save(model, network)
    point = [float(v) for v in rng.normal(size=3)]
    prop = box_property(tmp_path / "p.vnnlib", point, point, "(assert (<= Y_0 Y_1))")
    (goal,) = goals(prop.read_text())
    (bound,) = Derivation(read_network(network), goal).bounds(
        [Case(0, ())], Advice(np.ones((1, 1)), np.zeros(0), {})
    )
    y = exact_outputs(network, [Fraction(v) for v in point])
    assert Fraction(float(bound)) <= y[0] - y[1]
    scale = max(abs(y[0]), abs(y[1]))
    assert float((y[0] - y[1] - Fraction(float(bound))) / scale) < 1e-9


def test_rounding_of_cuts_is_paid_for_too(tmp_path: Path):
    """Beside 2^53 the 400 others are each less than float64 can tell, together they are 360."""
    network = mlp(tmp_path / "n.onnx", (3, 12, 2), 0)
    point = [0.5, -0.25, 0.125]
    prop = box_property(tmp_path / "p.vnnlib", point, point, "(assert (<= Y_0 Y_1))")
    steps, (goal,) = read_network(network), goals(prop.read_text())
    x = [Fraction(v) for v in point]
    z = [sum((Fraction(float(w)) * v for w, v in zip(row, x, strict=True)), Fraction(float(b)))
         for row, b in zip(steps[1].weight, steps[1].bias, strict=True)]  # fmt: skip
    ends, multipliers = [-(2.0**53)] + [-900.0] * 400, np.array([1.0] + [0.001] * 400)
    cuts = tuple((0, k % 12, end, True) for k, end in enumerate(ends))
    (bound,) = Derivation(steps, goal).bounds(
        [Case(0, cuts)], Advice(np.ones((1, 1)), multipliers, {})
    )
    drop = sum(Fraction(float(m)) * (z[k] - Fraction(end))
               for m, (_, k, end, _) in zip(multipliers, cuts, strict=True))  # fmt: skip
    y = exact_outputs(network, x)
    assert Fraction(float(bound)) <= y[0] - y[1] - drop
    assert float(bound) == pytest.approx(float(-drop), rel=1e-12)


def test_a_proof_that_holds_in_rounded_arithmetic_only_is_refused(tmp_path: Path):
    """2^60 + 1 - 2^60 is 0 in float64: y = (big + x) - big looks like 0, but it is x <= 1."""
    from onnx import helper
    from proof_tools import save_onnx

    big = np.float32(2.0**60)
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["z"], transB=1),
        helper.make_node("Gemm", ["z", "w1", "b1"], ["y"], transB=1),
    ]
    weights = {
        "w0": np.ones((1, 1), np.float32),
        "b0": np.array([big]),
        "w1": np.ones((1, 1), np.float32),
        "b1": np.array([-big]),
    }
    network = save_onnx(tmp_path / "n.onnx", nodes, weights, (1, 1), (1, 1))
    prop = box_property(tmp_path / "p.vnnlib", [0.0], [1.0], "(assert (>= Y_0 0.5))", n_outputs=1)
    tree = Tree(
        np.array([LEAF], np.int32), np.zeros(1, np.int64), np.zeros(1), np.ones((1, 1)), np.zeros(0)
    )
    proof = Proof(digest(network.read_bytes()), digest(prop.read_bytes()), (tree,))
    assert "not excluded" in check(proof, network, prop).reason


def test_contradictory_property_needs_no_tree(made: dict, tmp_path: Path):
    network, _, proof = made["input"]
    prop = box_property(tmp_path / "p.vnnlib", LOW, HIGH, "(assert (>= X_0 2))")
    empty = Proof(proof.network_sha256, digest(prop.read_bytes()), ())
    assert check(empty, network, prop).accepted


@pytest.mark.parametrize(
    "asserted",
    [
        "(assert (or (>= Y_0 1) (and (<= X_0 0.3) (< Y_1 X_1)) (<= X_0 -5)))",
        "(assert (!= Y_0 0.1)) (assert (or (= Y_1 0.25) (<= (* 0.1 Y_0) (* 0.3 X_2))))",
        "(assert (and (or (<= Y_0 0) (<= Y_1 0)) (or (< X_0 0.7) (>= X_1 0.1)) (<= 0 1)))",
    ],
)
def test_both_readings_of_a_property_give_the_same_clauses(tmp_path: Path, asserted: str):
    text = box_property(tmp_path / "p.vnnlib", [-0.1] * 3, [0.9] * 3, asserted).read_text()
    clauses = parse_vnnlib(text).prop.clauses
    found = goals(text)
    assert len(clauses) == len(found) > 1
    for clause, goal in zip(clauses, found, strict=True):
        np.testing.assert_array_equal(clause.lower, goal.lower)
        np.testing.assert_array_equal(clause.upper, goal.upper)
        np.testing.assert_array_equal(clause.C, goal.of_outputs)
        np.testing.assert_array_equal(clause.d, goal.constants)
        given = np.zeros_like(goal.of_inputs) if clause.D is None else clause.D
        np.testing.assert_array_equal(given, goal.of_inputs)


def test_the_checker_imports_nothing_of_the_verifier():
    allowed = {
        "__future__",
        "collections",
        "dataclasses",
        "fractions",
        "functools",
        "gzip",
        "hashlib",
        "io",
        "itertools",
        "json",
        "math",
        "os",
        "pathlib",
        "re",
        "time",
        "typing",
        "zipfile",
        "zlib",
        "numpy",
        "onnx",
        "scipy",
    }
    own = {
        *("check", "clauses", "enclosure", "errors", "exact", "network", "operators", "proof"),
        *("several", "steps", "substitution"),
    }
    files = [SOURCES / f"{name}.py" for name in own] + [SOURCES.parent / "errors.py"]
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [a.name for a in node.names] if isinstance(node, ast.Import) else []
            for module in modules:
                parts = module.split(".")
                assert (
                    parts[0] in allowed
                    or parts == ["holdfast", "errors"]
                    or (parts[:2] == ["holdfast", "certificates"] and parts[2] in own)
                ), f"{file.name} imports {module}"


def test_cases_are_listed_in_order():
    tree = Tree(
        np.array([-1, -2, 0, -2, -2], np.int32),
        np.array([1, 0, 4, 0, 0]),
        np.array([0.5, 0, -1.0, 0, 0]),
        np.ones((3, 1)),
        np.zeros(2),
    )
    assert [case.cuts for case in cases(tree)] == [
        ((-1, 1, 0.5, False),),
        ((-1, 1, 0.5, True), (0, 4, -1.0, False)),
        ((-1, 1, 0.5, True), (0, 4, -1.0, True)),
    ]


@pytest.mark.parametrize("seed", range(3))
def test_ranges_hold_every_sample_and_are_nearly_tight_on_small_boxes(tmp_path: Path, seed: int):
    rng = np.random.default_rng(seed)
    steps = read_network(mlp(tmp_path / "n.onnx", (3, 20, 20, 20, 2), seed))
    lower = rng.normal(size=(4, 3))
    upper = lower + 0.1
    ranges, _ = propagate(steps, lower, upper)
    corners = rng.integers(0, 2, (2000, 1, 3)) * (upper - lower) + lower
    values = [np.concatenate([corners, rng.uniform(lower, upper, (2000, 4, 3))])]
    for at, step in enumerate(steps[1:], 1):
        value = values[step.sources[0]]
        affine = step.kind == "affine"
        values.append(value @ step.weight.T + step.bias if affine else np.maximum(value, 0))
        least, most = values[at].min(axis=0), values[at].max(axis=0)
        assert (ranges.lower[at] <= least + 1e-12).all()
        assert (most - 1e-12 <= ranges.upper[at]).all()
    before = steps[-2].sources[0]
    lower, upper, reached = ranges.lower[before], ranges.upper[before], values[before]
    refined = (lower < 0) & (upper > 0)  # the others keep their intervals
    assert refined.any()
    spread = (reached.max(axis=0) - reached.min(axis=0))[refined].sum()
    assert (upper - lower)[refined].sum() < 1.5 * spread


@pytest.mark.parametrize(
    ("asserted", "case", "expected"),
    [
        ("(assert (<= Y_0 0.25))", (0, 0, 0.5, True), 0.25),  # y = z >= 0.5, and z - (z - 0.5)
        ("(assert (>= Y_0 0.75))", (0, 0, 0.5, False), 0.25),  # y <= (z + 1) / 1.5 below 0.5
    ],
)
def test_a_multiplier_makes_the_bound_of_a_cut_exact(
    tmp_path: Path, asserted: str, case: tuple, expected: float
):
    from onnx import helper
    from proof_tools import save_onnx

    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["z"]),
        helper.make_node("Relu", ["z"], ["y"]),
    ]
    weights = {"w": np.ones((1, 1), np.float32), "b": np.zeros(1, np.float32)}
    steps = read_network(save_onnx(tmp_path / "n.onnx", nodes, weights, (1, 1), (1, 1)))
    text = box_property(tmp_path / "p.vnnlib", [-1.0], [1.0], asserted, n_outputs=1).read_text()
    multiplier = 1.0 if case[3] else 1 / 3
    advice = Advice(np.ones((1, 1)), np.array([multiplier]), {0: np.ones((1, 1))})
    (bound,) = Derivation(steps, goals(text)[0]).bounds([Case(0, (case,))], advice)
    assert bound <= expected
    assert bound == pytest.approx(expected, abs=1e-12)


def test_the_bound_of_a_case_does_not_depend_on_its_neighbours(tmp_path: Path):
    steps = read_network(mlp(tmp_path / "n.onnx", (3, 30, 30, 30, 30, 30, 2), 0))
    text = box_property(tmp_path / "p.vnnlib", LOW, HIGH, "(assert (<= Y_0 Y_1))").read_text()
    derivation = Derivation(steps, goals(text)[0])
    listed = []
    for number, corner in enumerate(np.random.default_rng(0).uniform(-1, 0.7, (40, 3)).tolist()):
        cuts = [(INPUT, k, low, True) for k, low in enumerate(corner)]
        cuts += [(INPUT, k, low + 0.3, False) for k, low in enumerate(corner)]
        listed.append(Case(number, tuple(cuts)))
    together = derivation.bounds(listed, Advice(np.ones((40, 1)), np.zeros(0), {}))
    for number, case in enumerate(listed):
        (alone,) = derivation.bounds([case], Advice(np.ones((1, 1)), np.zeros(0), {}))
        assert alone == pytest.approx(together[number], abs=1e-9)
