"""Data from npz, idx, folders and bundled sets: the same values whatever the container."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from holdfast.data import as_data
from holdfast.errors import DataError
from holdfast.modalities import data_domain, load, sources

RNG = np.random.default_rng(0)
DATA = Path(os.environ.get("HOLDFAST_DATA", Path(__file__).parents[2] / "../shared/data"))


def all_of(data):
    return data.fetch(range(len(data)))


# ------------------------------------------------------------ npz


@pytest.mark.parametrize(
    ("x", "shape", "note"),
    [
        (RNG.integers(0, 256, (4, 6, 5, 3), dtype=np.uint8), (3, 6, 5), "channels moved"),
        (RNG.integers(0, 256, (4, 3, 6, 5), dtype=np.uint8), (3, 6, 5), "8-bit"),
        (RNG.integers(0, 256, (4, 6, 5), dtype=np.uint8), (1, 6, 5), "channel axis"),
        (RNG.integers(0, 256, (4, 6, 5, 1), dtype=np.uint8), (1, 6, 5), "channels moved"),
        (RNG.random((4, 6, 5, 3)), (3, 6, 5), "channels moved"),
        (RNG.random((4, 3, 6, 3)), (3, 6, 3), "a.npz"),
        (RNG.random((4, 6, 5)), (6, 5), "a.npz"),
        (RNG.random((4, 7)).astype(np.float16), (7,), "a.npz"),
        (RNG.integers(0, 9, (4, 7)), (7,), "a.npz"),
    ],
)
def test_npz_shapes_and_values(tmp_path, x, shape, note):
    np.savez(tmp_path / "a.npz", x=x, y=[0, 1, 2, 1])
    data = load(str(tmp_path / "a.npz"))
    got, y = all_of(data)
    assert data.shape == shape == tuple(got.shape[1:])
    assert note in data.description
    assert got.dtype == torch.float32
    assert y.tolist() == [0, 1, 2, 1]
    expected = np.moveaxis(x, 3, 1) if "moved" in note else x.reshape(4, *shape)
    scale = 255 if x.dtype == np.uint8 else 1
    torch.testing.assert_close(got, torch.from_numpy(expected.astype(np.float32) / scale))


@pytest.mark.parametrize(
    ("y", "numbers", "names"),
    [
        (np.array([3, 0, 1], np.uint8), [3, 0, 1], ()),
        (np.array([1.0, 0.0, 2.0]), [1, 0, 2], ()),
        (np.array([[1], [0], [2]]), [1, 0, 2], ()),
        (np.eye(3)[[2, 0, 1]], [2, 0, 1], ()),
        (np.array(["dog", "cat", "dog"]), [1, 0, 1], ("cat", "dog")),
        (np.array([True, False, True]), [1, 0, 1], ("False", "True")),
    ],
)
def test_labels_in_their_usual_forms(tmp_path, y, numbers, names):
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 2)), y=y)
    data = load(str(tmp_path / "a.npz"))
    assert all_of(data)[1].tolist() == numbers
    assert data.class_names == names


@pytest.mark.parametrize("pair", [("X_test", "y_test"), ("images", "labels"), ("data", "target")])
def test_usual_names_of_arrays(tmp_path, pair):
    np.savez(tmp_path / "a.npz", **{pair[0]: np.ones((2, 3)), pair[1]: [0, 1], "other": [1]})
    data = load(str(tmp_path / "a.npz"))
    assert len(data) == 2
    assert pair[0] in data.description


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones((2, 3))}, "has no labels: it holds x \\(2, 3\\)"),
        ({"y": [1]}, "has no inputs"),
        ({"x": np.ones((2, 3)), "y": [0]}, "do not fit"),
        ({"x": np.ones((2, 3)), "y": [0.5, 1]}, "label of sample 0 of .* is 0.5"),
        ({"x": np.ones((2, 3)), "y": [1, np.nan]}, "label of sample 1"),
        ({"x": np.ones((2, 3)), "y": np.ones((2, 3))}, r"labels of .* have shape \(2, 3\)"),
        ({"x": np.array(["a", "b"]), "y": [0, 1]}, "give numbers"),
        ({"x": np.ones(2), "y": [0, 1]}, "give numbers of shape"),
        ({"x": np.array([None, 1]), "y": [0, 1]}, "object arrays are pickles"),
        ({"x": np.ones((0, 3)), "y": np.ones(0, int)}, "no samples"),
    ],
)
def test_bad_npz_are_told(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=f"(?s){message}"):
        load(str(tmp_path / "a.npz"))


@pytest.mark.parametrize("content", [b"", b"torn", b"PK\x03\x04torn"])
def test_unreadable_npz_are_told(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"Cannot read .*a\.npz"):
        load(str(tmp_path / "a.npz"))


# ------------------------------------------------------------ idx


def idx(path, array, code=0x08):
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    content = head + array.astype(array.dtype.newbyteorder(">")).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


IMAGES = RNG.integers(0, 256, (5, 4, 3), dtype=np.uint8)
LABELS = np.array([3, 1, 0, 2, 1], np.uint8)


@pytest.mark.parametrize("ends", [("", ""), (".gz", ".gz"), (".gz", ""), ("", ".gz")])
def test_idx_with_the_labels_beside_it(tmp_path, ends):
    images = idx(tmp_path / f"t10k-images-idx3-ubyte{ends[0]}", IMAGES)
    idx(tmp_path / f"t10k-labels-idx1-ubyte{ends[1]}", LABELS)
    data = load(str(images))
    x, y = all_of(data)
    assert data.shape == (1, 4, 3)
    assert torch.equal(x, torch.from_numpy(IMAGES)[:, None].float() / 255)
    assert y.tolist() == LABELS.tolist()


def test_idx_as_two_files_and_other_types(tmp_path):
    x = RNG.normal(size=(5, 2, 3)).astype(np.float32)
    a, b = idx(tmp_path / "a", x, 0x0D), idx(tmp_path / "b", LABELS.astype(np.int32), 0x0C)
    got, y = all_of(load(f"{a},{b}"))
    assert torch.equal(got, torch.from_numpy(x))
    assert y.tolist() == LABELS.tolist()


def test_bad_idx_are_told(tmp_path):
    images = idx(tmp_path / "t10k-images-idx3-ubyte", IMAGES)
    with pytest.raises(DataError, match=r"No labels beside .*t10k-labels-idx1-ubyte\.gz"):
        load(str(images))
    idx(tmp_path / "t10k-labels-idx1-ubyte", LABELS[:-1])
    with pytest.raises(DataError, match=r"5 samples, but .* holds 4 labels"):
        load(str(images))
    images.write_bytes(images.read_bytes()[:-3])
    with pytest.raises(DataError, match="announces 60 bytes, but 57 follow"):
        load(str(images))
    packed = idx(tmp_path / "train-images-idx3-ubyte.gz", IMAGES)
    packed.write_bytes(packed.read_bytes()[:-9])
    idx(tmp_path / "train-labels-idx1-ubyte.gz", LABELS)
    with pytest.raises(DataError, match="Cannot read"):
        load(str(packed))
    (tmp_path / "x-idx3-ubyte").write_bytes(b"hello world")
    with pytest.raises(DataError, match=r"No labels|is not an idx file"):
        load(str(tmp_path / "x-idx3-ubyte"))


@pytest.mark.skipif(not (DATA / "mnist").is_dir(), reason="no data in $HOLDFAST_DATA")
def test_mnist_itself():
    data = load(str(DATA / "mnist" / "t10k-images-idx3-ubyte.gz"), n=100)
    x, y = all_of(data)
    assert data.shape == (1, 28, 28)
    assert len(data) == 100
    assert y[:5].tolist() == [7, 2, 1, 0, 4]
    assert float(x.max()) == 1.0


# ------------------------------------------------------------ folders of images


def folder(root, classes, size=(5, 4), mode="RGB", n=3, ending="png"):
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            value = (40 * c + 10 * i) if mode in "L1" else (40 * c, 10 * i, 200)
            Image.new(mode, size, value).save(root / name / f"{i}.{ending}")
    return str(root)


def test_images_take_turns_between_classes(tmp_path):
    data = load(folder(tmp_path, ["cat", "dog", "ant"]))
    x, y = all_of(data)
    assert data.class_names == ("ant", "cat", "dog")
    assert y.tolist() == [0, 1, 2] * 3
    assert data.shape == (3, 4, 5) == tuple(x.shape[1:])
    assert x[0, :, 0, 0].tolist() == pytest.approx([80 / 255, 0, 200 / 255])
    assert len(load(str(tmp_path), n=4)) == 4
    for i in (0, 5, 8):
        assert torch.equal(data.fetch([i])[0][0], x[i])


def test_numbers_sort_by_value_and_a_listing_decides(tmp_path):
    folder(tmp_path, ["10", "9", "2"], mode="L", n=1)
    data = load(str(tmp_path))
    assert data.class_names == ("2", "9", "10")
    assert data.shape == (1, 4, 5)
    (tmp_path / "classes.txt").write_text("9\n10\nempty\n2\n")
    assert load(str(tmp_path)).class_names == ("9", "10", "empty", "2")
    assert all_of(load(str(tmp_path)))[1].tolist() == [0, 1, 3]
    (tmp_path / "classes.txt").write_text("9\n")
    with pytest.raises(DataError, match=r"classes\.txt lacks the classes"):
        load(str(tmp_path))


@pytest.mark.parametrize("ending", ["png", "bmp", "webp", "jpg"])
def test_formats(tmp_path, ending):
    x, _ = all_of(load(folder(tmp_path, ["a", "b"], ending=ending)))
    assert float((x[0, :, 0, 0] - torch.tensor([0, 0, 200 / 255])).abs().max()) < 0.03


def test_grey_and_colour_together_are_colour(tmp_path):
    folder(tmp_path, ["a"], mode="L")
    data = load(folder(tmp_path, ["b"]))
    assert data.shape[0] == 3
    assert float(all_of(data)[0][2, :, 0, 0].std()) == 0.0  # the second grey one


def test_16_bit_images_keep_their_range(tmp_path):
    (tmp_path / "a").mkdir()
    Image.fromarray(np.full((4, 5), 52428, np.uint16)).save(tmp_path / "a" / "0.png")
    x, _ = all_of(load(str(tmp_path)))
    assert x.shape == (1, 1, 4, 5)
    assert float(x.mean()) == pytest.approx(0.8)


def test_hidden_files_and_other_files_are_left_out(tmp_path):
    folder(tmp_path, ["a", "b"])
    (tmp_path / ".git").mkdir()
    (tmp_path / "a" / ".hidden.png").write_bytes(b"")
    (tmp_path / "a" / "notes.txt").write_text("hello")
    assert len(load(str(tmp_path))) == 6


def test_bad_folders_are_told(tmp_path):
    folder(tmp_path / "sizes", ["a"])
    folder(tmp_path / "sizes", ["b"], size=(7, 4))
    with pytest.raises(DataError, match=r"differ in size: .*a/0\.png is 5x4, .*b/0\.png is 7x4"):
        load(str(tmp_path / "sizes"))
    folder(tmp_path / "splits" / "train", ["a"])
    folder(tmp_path / "splits" / "test", ["a"])
    with pytest.raises(DataError, match="split into test, train, which are not classes"):
        load(str(tmp_path / "splits"))
    folder(tmp_path / "torn", ["a"])
    (tmp_path / "torn" / "a" / "0.png").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"Cannot read the image .*0\.png"):
        load(str(tmp_path / "torn"))
    (tmp_path / "flat").mkdir()
    with pytest.raises(DataError, match=r"no sub-folders.*It holds nothing"):
        load(str(tmp_path / "flat"))
    (tmp_path / "flat" / "a").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        load(str(tmp_path / "flat"))


def test_an_image_that_ends_too_early_is_told_when_it_is_read(tmp_path):
    root = folder(tmp_path, ["a"], size=(50, 40))
    file = tmp_path / "a" / "1.png"
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(DataError, match=r"Cannot (decode|read) the image .*1\.png"):
        all_of(load(root))


# ------------------------------------------------------------ names, ranges, mistakes


def test_bundled_sets():
    digits, cancer = load("digits"), load("breast_cancer")
    assert (len(digits), digits.shape) == (1797, (1, 8, 8))
    assert (len(cancer), cancer.shape) == (569, (30,))
    for data in (digits, cancer):
        x, _ = all_of(data)
        assert float(x.min()) == 0.0
        assert float(x.max()) == 1.0
    train, test = load("digits:train"), load("digits:test")
    assert len(train) + len(test) == len(digits)
    assert torch.equal(test.fetch([0])[0], digits.fetch([len(train)])[0])
    assert cancer.class_names == ("malignant", "benign")
    with pytest.raises(DataError, match="Unknown part 'val'"):
        load("digits:val")


def test_the_range_of_every_feature(tmp_path):
    x = RNG.normal(size=(2500, 3))
    np.savez(tmp_path / "a.npz", x=x, y=np.zeros(2500, int))
    domain = data_domain(load(str(tmp_path / "a.npz")))
    torch.testing.assert_close(domain.lower, torch.from_numpy(x.min(0)).float())
    torch.testing.assert_close(domain.upper, torch.from_numpy(x.max(0)).float())
    x[2400, 1] = np.nan
    np.savez(tmp_path / "a.npz", x=x, y=np.zeros(2500, int))
    with pytest.raises(DataError, match="missing or infinite"):
        data_domain(load(str(tmp_path / "a.npz")))


def test_unknown_data_lists_the_forms(tmp_path):
    with pytest.raises(DataError, match=r"(?s)'nowhere' does not exist.*digits.*folder.*idx.*npz"):
        load("nowhere")
    (tmp_path / "data.xyz").write_text("hello")
    with pytest.raises(DataError, match="is of a form that is not known"):
        load(str(tmp_path / "data.xyz"))
    assert {source.name for source in sources()} >= {"bundled", "folder", "idx", "npz", "table"}


def test_from_python_by_name():
    assert len(as_data("digits", n=7)) == 7
