"""Proofs of ``unsat`` written, read back and derived again by the independent checker.

    python benchmarks/verify_certificates.py acasxu --first 45
    python benchmarks/verify_certificates.py images --first 200

``images``: the Wong-Kolter network for MNIST at linf 0.1, one property an image, as ONNX.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper, save

from _common import data_folder, write
from holdfast.certificates import CertificateError, check, save_proof
from holdfast.certificates.emit import build_proof
from holdfast.graphs.onnx_reader import read_onnx
from holdfast.properties.instances import decide, read_instances

EPS = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("acasxu", "mnist_fc", "rl_benchmarks", "images"))
    parser.add_argument("--first", type=int, default=45)
    parser.add_argument("--timeout", type=float, default=116.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = mnist(folder) if args.what == "images" else competition(args.what)
        for network, prop in itertools.islice(source, args.first):
            rows.append(prove(network, prop, folder / "a.proof", args.timeout))
            print(rows[-1], flush=True)
    unsat = [row for row in rows if row["result"] == "unsat"]
    print(
        f"{sum(row['accepted'] for row in unsat)} of {len(unsat)} proofs accepted; "
        f"solved in {sum(r['solve_cpu_s'] for r in unsat):.1f}, written in "
        f"{sum(r['build_cpu_s'] for r in unsat):.1f}, checked in "
        f"{sum(r['check_cpu_s'] for r in unsat):.1f} CPU seconds"
    )
    write(f"verify_certificates_{args.what}", vars(args), rows)


def competition(name: str) -> Iterator[tuple[Path, Path]]:
    """Networks and properties of a benchmark, in its order."""
    folder = data_folder() / "vnn" / name
    for instance in read_instances(next(folder.glob("*instances.csv"))):
        yield folder / instance.onnx, folder / instance.vnnlib


def mnist(folder: Path) -> Iterator[tuple[Path, Path]]:
    """The network as ONNX, and for each test image that another class reaches its logit."""
    network = folder / "mnist.onnx"
    weights = data_folder() / "models" / "convex_adversarial" / "mnist.pth"
    state = torch.load(weights, weights_only=True, map_location="cpu")
    state = state["state_dict"][0] if "state_dict" in state else state
    write_network(network, [v.numpy() for v in state.values()])
    source = data_folder() / "mnist"
    pixels = gzip.decompress((source / "t10k-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((source / "t10k-labels-idx1-ubyte.gz").read_bytes())[8:]
    x = np.frombuffer(pixels, np.uint8).reshape(-1, 784).astype(np.float32) / np.float32(255)
    for number, (image, label) in enumerate(zip(x.astype(np.float64), labels, strict=True)):
        path = folder / f"{number}.vnnlib"
        lower, upper = np.clip(image - EPS, 0, 1), np.clip(image + EPS, 0, 1)
        lines = [f"(declare-const X_{i} Real)" for i in range(784)]
        lines += [f"(declare-const Y_{i} Real)" for i in range(10)]
        for i, (low, high) in enumerate(zip(lower.tolist(), upper.tolist(), strict=True)):
            lines += [f"(assert (>= X_{i} {low!r}))", f"(assert (<= X_{i} {high!r}))"]
        others = " ".join(f"(>= Y_{k} Y_{label})" for k in range(10) if k != label)
        path.write_text("\n".join([*lines, f"(assert (or {others}))"]))
        yield network, path


def write_network(path: Path, tensors: list[np.ndarray]) -> None:
    """Conv(4, stride 2, pad 1) twice, then two linear layers, ReLU between, as ONNX."""
    value, nodes, names = "x", [], [f"t{i}" for i in range(len(tensors))]
    for i in range(0, 8, 2):
        last = i == 6
        out = "y" if last else f"z{i}"
        if i == 4:
            nodes.append(helper.make_node("Flatten", [value], ["flat"]))
            value = "flat"
        if i < 4:
            nodes.append(
                helper.make_node(
                    "Conv",
                    [value, names[i], names[i + 1]],
                    [out],
                    strides=[2, 2],
                    pads=[1, 1, 1, 1],
                )
            )
        else:
            nodes.append(helper.make_node("Gemm", [value, names[i], names[i + 1]], [out], transB=1))
        if not last:
            nodes.append(helper.make_node("Relu", [out], [f"a{i}"]))
        value = f"a{i}"
    graph = helper.make_graph(
        nodes,
        "mnist",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 1, 28, 28))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 10))],
        [numpy_helper.from_array(t, n) for t, n in zip(tensors, names, strict=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    save(model, path)


def prove(network: Path, prop: Path, path: Path, timeout_s: float) -> dict:
    """Solve one instance and have its proof checked."""
    row = {"network": network.name, "property": prop.name}
    start = time.process_time()
    _, verdict = decide(network, prop, timeout_s, certificate=True)
    row |= {"result": verdict.status, "solve_cpu_s": round(time.process_time() - start, 3)}
    if verdict.certificate is None:
        return row
    start = time.process_time()
    try:
        proof = build_proof(verdict.certificate, read_onnx(network, fold=False), network, prop)
    except CertificateError as error:
        return row | {
            "accepted": False,
            "reason": str(error),
            "build_cpu_s": 0.0,
            "check_cpu_s": 0.0,
        }
    save_proof(proof, path)
    row["build_cpu_s"] = round(time.process_time() - start, 3)
    start = time.process_time()
    result = check(path, network, prop)
    return row | {
        "check_cpu_s": round(time.process_time() - start, 3),
        "accepted": result.accepted,
        "reason": result.reason,
        "leaves": len(verdict.certificate.leaves),
        "cases": result.n_leaves,
        "smallest_bound": result.smallest,
        "bytes": path.stat().st_size,
    }


if __name__ == "__main__":
    main()
