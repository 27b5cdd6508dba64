"""What Python users hold as data: read the same whatever its form, or refused in plain words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, TensorDataset

import holdfast
from holdfast.attacks.pgd import PGD
from holdfast.data import as_data
from holdfast.errors import DataError, InputError, PlanError, ThreatError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)
X = torch.from_numpy(PIXELS).permute(0, 3, 1, 2).float() / 255
Y = torch.tensor([0, 2, 1, 1, 0, 2])


class Samples(Dataset):
    """Whatever ``make`` says of each sample."""

    def __init__(self, make: Callable[[int], Any], n: int = len(Y)) -> None:
        self.make, self.n = make, n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Any:
        return self.make(i)


def turned(batch: list[tuple[Any, Any]]) -> tuple[Any, ...]:
    return tuple(zip(*batch, strict=True))


def everything(given: Any) -> tuple[torch.Tensor, torch.Tensor]:
    data = as_data(given)
    return data.fetch(range(len(data)))


def picture(i: int) -> Image.Image:
    return Image.fromarray(PIXELS[i])


@pytest.mark.parametrize(
    "given",
    [
        (X, Y),
        (X.numpy(), Y.numpy()),
        (X.tolist(), Y.tolist()),
        (list(X), list(Y)),
        (X, Y[:, None]),
        (X, Y.double()),
        (X, torch.nn.functional.one_hot(Y)),
        ([picture(i) for i in range(6)], Y),
        Samples(lambda i: (picture(i), int(Y[i]))),
        Samples(lambda i: [X[i].numpy(), Y[i]]),
        TensorDataset(X, Y),
        DataLoader(TensorDataset(X, Y), batch_size=4),
        DataLoader(TensorDataset(X, Y), batch_size=4, collate_fn=turned),
    ],
)
def test_the_same_samples_in_every_form(given: Any) -> None:
    x, y = everything(given)
    torch.testing.assert_close(x, X)
    assert torch.equal(y, Y)


def test_grey_and_palette_pictures_have_channels() -> None:
    grey, palette = picture(0).convert("L"), picture(1).quantize(8)
    x, _ = everything(([grey], [0]))
    torch.testing.assert_close(x[0, 0], torch.from_numpy(np.array(grey)) / 255)
    x, _ = everything(([palette], [0]))
    colours = torch.from_numpy(np.array(palette.convert("RGB"))).permute(2, 0, 1) / 255
    torch.testing.assert_close(x[0], colours)


def test_labels_that_are_all_true_are_ones() -> None:
    _, y = everything((X[:2], [True, True]))
    assert y.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((X, Y + 0.5), r"label of sample 0 .* is 0\.5"),
        ((X, ["cat"] * 6), r"labels .* are \['cat', .*class numbers"),
        ((X, torch.softmax(torch.rand(6, 3), 1)), r"labels .*\(6, 3\)"),
        ((X[0], Y[0]), r"labels .* shape \(\)"),
        ((X[0], 3), r"labels .* shape \(\)"),
        ((X, Y[:4]), r"\(6, 3, 4, 5\) and labels \(4,\) do not fit"),
        ((X[:0], Y[:0]), "no samples"),
        (([], []), "no samples"),
        ((["a"] * 6, Y), "cannot be read as numbers"),
        (([X[0], X[1, :, :2]], [0, 1]), "cannot be read as numbers of one shape"),
        (X, r"Cannot use a Tensor as data.*pair \(x, y\)"),
        ({"x": X, "y": Y}, r"Cannot use a dict with x, y as data"),
        (None, "Cannot use a NoneType"),
        (
            Samples(lambda i: {"image": X[i], "label": 0}),
            "Sample 0 .* dict with image, label.*pair",
        ),
        (Samples(lambda i: (X[i], "cat")), "label of sample 0 is 'cat'"),
        (Samples(lambda i: (X[i], 0.5)), r"label of sample 0 is 0\.5"),
        (Samples(lambda i: (X[i], torch.eye(3)[0])), "label of sample 0 is tensor"),
        (Samples(lambda i: (X[i, :, : i + 1], 0)), "one shape"),
        (Samples(lambda i: (X[i], 0), n=0), "no samples"),
        (
            DataLoader(Samples(lambda i: (X[i], "cat")), shuffle=True),
            r"labels of the DataLoader are \['cat'\]",
        ),
        (
            DataLoader(
                Samples(lambda i: {"image": X[i], "label": 0}),  # type: ignore[arg-type]
                shuffle=True,
            ),
            "first batch .* dict with image, label",
        ),
    ],
)
def test_what_is_no_data_says_what_is_wanted(given: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        everything(given)


WEIGHTS = np.random.default_rng(1).normal(size=(60, 3)).astype(np.float32)


def scores(x: Any) -> Any:
    """A classifier without gradients."""
    return np.asarray(x).reshape(len(x), -1) @ WEIGHTS


NET = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(60, 3))
CALLS = {
    "attack": lambda x, y: PGD(steps=3)(NET, x, y, "linf:0.1"),
    "distances": lambda x, y: holdfast.minimal_distances(NET, x, y, budget=40).distance,
    "bounds": lambda x, y: holdfast.bounds(NET, x, "linf:0.1").lower,
    "radius": lambda x, y: holdfast.certified_radius(NET, x, y),
    "smooth": lambda x, y: holdfast.smooth(NET, n=50).certify(x).p_lower,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_what_takes_tensors_takes_arrays_lists_and_labels_of_any_kind(
    call: Callable[[Any, Any], torch.Tensor],
) -> None:
    expected = call(X, Y)
    for x, y in ((X.numpy(), Y.numpy()), (list(X), Y.tolist()), (X, Y.float()[:, None])):
        torch.testing.assert_close(torch.as_tensor(call(x, y)), torch.as_tensor(expected))
    with pytest.raises(DataError, match="no samples"):
        call(X[:0], Y[:0])
    with pytest.raises(DataError, match="cannot be read as numbers"):
        call(["a"] * 6, Y)


@pytest.mark.parametrize("call", [CALLS["attack"], CALLS["distances"], CALLS["radius"]])
def test_labels_that_are_none_are_refused_by_what_takes_tensors(
    call: Callable[[Any, Any], torch.Tensor],
) -> None:
    with pytest.raises(DataError, match=r"label of sample 0 of y is 0\.5"):
        call(X, Y + 0.5)


@pytest.mark.parametrize(
    ("call", "kind", "says"),
    [
        (lambda: PGD()(NET, X, Y, 0.1), ThreatError, r"^0\.1 is no threat"),  # type: ignore[arg-type]
        (lambda: PGD()(NET, X, Y, "l2:1", targets="random"), DataError, r"targets.*\['random'\]"),  # type: ignore[arg-type]
        (lambda: PGD()(NET, X, Y, "l2:1", targets=2), DataError, r"targets have shape \(\)"),  # type: ignore[arg-type]
        (lambda: PGD()(scores, X, Y, "l2:1"), PlanError, r"'pgd' needs gradients.*scores.*square"),
        (lambda: holdfast.minimal_distances(scores, X, Y), PlanError, "gives scores only"),
        (lambda: holdfast.bounds(NET, X, 3), ThreatError, r"^3 is no threat"),  # type: ignore[arg-type]
        (
            lambda: holdfast.minimal_distances(NET, X, Y, norm=2),  # type: ignore[arg-type]
            PlanError,
            r"norm '2'.*linf, l2, l1, l0",
        ),
        (
            lambda: holdfast.minimal_distances(NET, X, Y, budget="90s"),  # type: ignore[arg-type]
            PlanError,
            r"budget is '90s' passes per sample; give at least 40",
        ),
    ],
)
def test_other_things_given_by_mistake(
    call: Callable[[], Any], kind: type[InputError], says: str
) -> None:
    with pytest.raises(kind, match=says):
        call()


def test_the_labels_of_an_audit_may_be_fewer_than_the_classes(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(60, 5))
    torch.nn.init.uniform_(net[1].weight, -0.005, 0.005)  # type: ignore[arg-type]
    net[1].bias.data = torch.tensor([0.0, 3.0, 2.9, 2.9, 2.9])  # between True and what has no name
    report = holdfast.audit(net, (X, Y > 0), "linf:0.1", cascade="quick", verify="off")
    page = report.save(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "True" in page
