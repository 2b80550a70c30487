"""Datasets: each format gives the examples that were written, and each defect one sentence."""

from __future__ import annotations

import gzip
import io
import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pyhessian_spectra.errors import InputError, NonFiniteError
from pyhessian_spectra.problems.datasets import load_data
from pyhessian_spectra.problems.inputs import arrange_inputs

_DATA = Path(os.environ.get("PYHESSIAN_SPECTRA_DATA", Path(__file__).parents[2] / "shared" / "data"))


def _needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        not (_DATA / name).is_dir(), reason=f"no {name} in PYHESSIAN_SPECTRA_DATA or ../shared/data"
    )


def _pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _labels(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 10, count, dtype=np.uint8)


def _idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.tobytes()


def _write_mnist(directory: Path, count: int = 6, *, suffix: str = "", separator: str = "-") -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for stem in ("train", "t10k"):
        for kind, array in (("images", _pixels(count, 28, 28)), ("labels", _labels(count))):
            content = _idx(array)
            path = directory / f"{stem}-{kind}{separator}idx{array.ndim}-ubyte{suffix}"
            path.write_bytes(gzip.compress(content) if suffix else content)


def _write_cifar_binary(directory: Path, batches: int = 2, count: int = 3) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    labels, pixels = _labels(batches * count), _pixels(batches * count, 3072)
    records = np.concatenate([labels[:, None], pixels], axis=1).reshape(batches, count, 3073)
    for index, batch in enumerate(records, start=1):
        (directory / f"data_batch_{index}.bin").write_bytes(batch.tobytes())


def _write_cifar_python(directory: Path, batches: int = 2, count: int = 3, protocol: int = 2) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    labels, pixels = _labels(batches * count), _pixels(batches * count, 3072).reshape(batches, count, 3072)
    for index, batch in enumerate(pixels, start=1):
        contents = {b"data": batch.copy(), b"labels": labels[(index - 1) * count : index * count].tolist()}
        (directory / f"data_batch_{index}").write_bytes(pickle.dumps(contents, protocol=protocol))


def _sentence(spec: object, **options: object) -> str:
    """What load_data complains, after checking that it is one line."""
    with pytest.raises(InputError) as error:
        load_data(spec, **options)
    message = str(error.value)
    assert "\n" not in message and len(message) < 600
    return message


def test_digits_are_split_without_overlap_and_scaled():
    train, test = load_data("digits"), load_data("digits", split="test")
    assert train.inputs.shape == (1438, 64) and test.inputs.shape == (359, 64)
    assert train.inputs.dtype == torch.float32 and train.targets.dtype == torch.int64
    assert train.inputs.min() == 0 and train.inputs.max() == 1 and train.num_classes == 10
    rows = {tuple(row.tolist()) for row in train.inputs}
    assert not any(tuple(row.tolist()) in rows for row in test.inputs)


def test_the_first_examples_are_taken_in_file_order_and_said():
    every, few = load_data("digits"), load_data("digits", num_examples=20)
    assert torch.equal(few.inputs, every.inputs[:20]) and torch.equal(few.targets, every.targets[:20])
    assert few.description.startswith("first 20 of the 1,438 training")
    assert every.description.startswith("all 1,438 training")


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("separator", ["-", "."])
@pytest.mark.parametrize("split", ["train", "test"])
def test_idx_files_give_what_was_written(tmp_path, suffix, separator, split):
    _write_mnist(tmp_path, suffix=suffix, separator=separator)
    data = load_data(tmp_path, split=split, normalize=False)
    expected = torch.tensor(_pixels(6, 28, 28)).view(6, 1, 28, 28) / 255
    torch.testing.assert_close(data.inputs, expected)
    assert data.targets.tolist() == _labels(6).tolist() and data.num_classes == 10


def test_idx_files_are_found_where_downloads_put_them(tmp_path):
    _write_mnist(tmp_path / "MNIST" / "raw")
    assert load_data(tmp_path).name == "MNIST"


def test_fashion_mnist_is_told_by_the_path_or_the_prefix(tmp_path):
    _write_mnist(tmp_path / "some")
    _write_mnist(tmp_path / "FashionMNIST" / "raw")
    mnist, named, prefixed = (
        load_data(spec)
        for spec in (f"mnist:{tmp_path}/some", tmp_path / "FashionMNIST", f"fashion-mnist:{tmp_path}/some")
    )
    assert (mnist.name, named.name, prefixed.name) == ("MNIST", "Fashion-MNIST", "Fashion-MNIST")
    torch.testing.assert_close(mnist.inputs * 0.3081 + 0.1307, prefixed.inputs * 0.3530 + 0.2860, atol=1e-6, rtol=0)
    assert "mean 0.286 " in named.description


@pytest.mark.parametrize("subdirectory", ["", "cifar-10-batches-bin"])
def test_binary_cifar_gives_what_was_written(tmp_path, subdirectory):
    _write_cifar_binary(tmp_path / subdirectory)
    data = load_data(tmp_path, normalize=False)
    torch.testing.assert_close(data.inputs, torch.tensor(_pixels(6, 3072)).view(6, 3, 32, 32) / 255)
    assert data.targets.tolist() == _labels(6).tolist()
    assert "data_batch_1.bin, data_batch_2.bin" in data.description


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("subdirectory", ["", "cifar-10-batches-py"])
def test_python_cifar_equals_binary_cifar(tmp_path, subdirectory, protocol):
    _write_cifar_binary(tmp_path / "binary")
    _write_cifar_python(tmp_path / "python" / subdirectory, protocol=protocol)
    binary, python = load_data(f"cifar10:{tmp_path}/binary"), load_data(f"cifar10:{tmp_path}/python")
    assert torch.equal(binary.inputs, python.inputs) and torch.equal(binary.targets, python.targets)


def test_a_python_cifar_file_by_python_2_is_read(tmp_path):
    # Python 2 wrote byte strings where Python 3 writes bytes objects: the opcodes U (short string) and c (global).
    pixels = _pixels(1, 3072).tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR(I1\n(I1\nI3072\nt"
        b"cnumpy\ndtype\n(U\x02u1I0\nI1\ntR(I3\nU\x01|NNNI-1\nI-1\nI0\ntbI00\nT"
        + len(pixels).to_bytes(4, "little")
        + pixels
        + b"tb"
    )
    (tmp_path / "test_batch").write_bytes(b"(dU\x04data" + array + b"sU\x06labels(lI7\nas.")
    data = load_data(tmp_path, split="test", normalize=False)
    torch.testing.assert_close(data.inputs.flatten(), torch.tensor(_pixels(1, 3072)).flatten() / 255)
    assert data.targets.tolist() == [7]


def test_standardisation_is_that_of_each_channel(tmp_path):
    _write_cifar_binary(tmp_path)
    raw, scaled = load_data(tmp_path, normalize=False), load_data(tmp_path)
    for channel, (mean, std) in enumerate([(0.4914, 0.2470), (0.4822, 0.2435), (0.4465, 0.2616)]):
        torch.testing.assert_close(scaled.inputs[:, channel], (raw.inputs[:, channel] - mean) / std)


def test_reading_a_hostile_cifar_file_runs_nothing(tmp_path):
    class Hostile:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({b"data": Hostile(), b"labels": []}, protocol=2))
    message = _sentence(tmp_path)
    assert "__builtin__.getattr" in message and "could run code" in message
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (("images", "labels"), "train"),
        (("x", "y"), "train"),
        (("x_train", "y_train"), "train"),
        (("x_test", "y_test"), "test"),
        (("train_images", "train_labels"), "train"),
    ],
)
def test_npz_arrays_are_found_by_name(tmp_path, names, split):
    values = np.linspace(-1, 1, 12).reshape(4, 3)
    np.savez(tmp_path / "a.npz", **{names[0]: values, names[1]: np.array([0, 2, 1, 2])})
    data = load_data(tmp_path / "a.npz", split=split)
    torch.testing.assert_close(data.inputs, torch.tensor(values, dtype=torch.float32))
    assert data.targets.tolist() == [0, 2, 1, 2] and data.num_classes == 3


def test_npz_pixels_are_scaled_and_channels_come_first(tmp_path):
    pixels = _pixels(2, 5, 4, 3)
    np.savez_compressed(tmp_path / "a.npz", images=pixels, labels=np.array([[1], [0]]))
    data = load_data(f"npz:{tmp_path}/a.npz")
    torch.testing.assert_close(data.inputs, torch.tensor(pixels).permute(0, 3, 1, 2) / 255)
    assert data.targets.tolist() == [1, 0]


def test_npz_targets_to_regress_on_stay_floats(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones((2, 3)), y=np.array([[0.5], [1.5]]))
    data = load_data(tmp_path / "a.npz")
    assert data.targets.tolist() == [[0.5], [1.5]] and data.num_classes == 0


def test_text_targets_are_the_inputs_one_byte_on(tmp_path):
    text = bytes(range(65, 65 + 50))
    (tmp_path / "a.txt").write_bytes(text)
    train, test = (
        load_data(tmp_path / "a.txt", block_size=4),
        load_data(f"text:{tmp_path}/a.txt", split="test", block_size=2),
    )
    assert train.inputs.shape == (11, 4) and train.num_classes == 256
    assert bytes(train.inputs.flatten().tolist()) == text[:44]
    assert bytes(train.targets.flatten().tolist()) == text[1:45]
    assert bytes(test.inputs.flatten().tolist()) == text[45:49]


def test_wrong_paths_say_what_is_expected(tmp_path):
    assert "there is no data at" in _sentence(tmp_path / "nowhere")
    assert "there is no data at" in _sentence(f"mnist:{tmp_path}/nowhere")
    assert "there is no data at digit;" in _sentence("digit")
    assert "holds no dataset" in _sentence(tmp_path)
    (tmp_path / "test_batch.bin").write_bytes(bytes(3073))
    assert "none of CIFAR-10's train files" in _sentence(tmp_path)
    assert "has no train-images-idx3-ubyte" in _sentence(f"mnist:{tmp_path}")


def test_wrong_options_are_named():
    assert "split must be" in _sentence("digits", split="validation")
    assert "num_examples must be at least 1, got 0" in _sentence("digits", num_examples=0)
    assert "num_examples = 2000" in _sentence("digits", num_examples=2000)
    assert "1,438" in _sentence("digits", num_examples=2000)


def test_damaged_idx_files_are_one_sentence(tmp_path):
    _write_mnist(tmp_path)
    images, labels = tmp_path / "train-images-idx3-ubyte", tmp_path / "train-labels-idx1-ubyte"
    whole = images.read_bytes()
    for content, expected in (
        (b"hello world", "magic number is 0x68656c6c, expected 0x00000803"),
        (b"", "magic number"),
        (whole[:-1], "is truncated"),
        (whole + b"x", "is truncated or damaged"),
        (whole[:9], "is truncated"),
        (gzip.compress(whole)[:-20], "is truncated"),
        (b"\x1f\x8b" + bytes(20), "is truncated or damaged"),
    ):
        images.write_bytes(content)
        assert expected in _sentence(tmp_path) and "train-images" in _sentence(tmp_path)
    images.write_bytes(whole)
    labels.write_bytes(_idx(_labels(5)))
    assert "holds 6 images but" in _sentence(tmp_path) and "5 labels" in _sentence(tmp_path)
    labels.write_bytes(_idx(np.array([1, 2, 12, 3, 99, 0], dtype=np.uint8)))
    assert "label 2 of MNIST (train-images-idx3-ubyte) is 12, outside the 10 classes, 0 to 9" in _sentence(tmp_path)
    images.write_bytes(_idx(_pixels(0, 28, 28)))
    labels.write_bytes(_idx(_labels(0)))
    assert "holds no training examples" in _sentence(tmp_path)


def test_damaged_cifar_files_are_one_sentence(tmp_path):
    _write_cifar_binary(tmp_path / "b")
    binary = tmp_path / "b" / "data_batch_1.bin"
    whole = binary.read_bytes()
    binary.write_bytes(whole[:-1])
    assert "not a multiple of the 3,073" in _sentence(tmp_path / "b")
    binary.write_bytes(bytes([10]) + whole[1:])
    assert "label 0 of CIFAR-10" in _sentence(tmp_path / "b")
    _write_cifar_python(tmp_path / "p")
    python = tmp_path / "p" / "data_batch_1"
    whole = python.read_bytes()
    pixels = _pixels(2, 3072)
    for content, expected in (
        (whole[:100], "truncated"),
        (b"", "truncated or not a CIFAR-10 batch"),
        (b"hello", "not a CIFAR-10 batch"),
        (pickle.dumps([1, 2]), "'data' must be"),
        (pickle.dumps({"data": pixels.astype(float), "labels": [1, 2]}), "'data' must be"),
        (pickle.dumps({"data": pixels, "labels": ["a", "b"]}, protocol=2), "'labels' must be"),
        (pickle.dumps({"data": pixels, "labels": [1]}, protocol=2), "2 images but 1 labels"),
    ):
        python.write_bytes(content)
        assert expected in _sentence(tmp_path / "p") and "data_batch_1" in _sentence(tmp_path / "p")


def test_defective_npz_files_are_one_sentence(tmp_path):
    path = tmp_path / "a.npz"
    buffer = io.BytesIO()
    np.savez(buffer, x=np.ones((2, 3)), y=np.array([0, 1]))
    for content, expected in (
        (buffer.getvalue()[:-30], "is damaged"),
        (b"", "is damaged"),
        (b"not an archive", "is damaged"),
        ({"a": np.ones(2), "b": np.ones(2)}, "has the arrays a, b; expected images and labels, or x and y"),
        ({"x": np.ones((2, 3)), "y": np.array([0, 1, 2])}, "do not pair up"),
        ({"x": np.ones(2), "y": np.array([0, 1])}, "do not pair up"),
        ({"x": np.ones((2, 3)), "y": np.array(["a", "b"])}, "dtype <U1"),
        ({"x": np.array([[None]], dtype=object), "y": np.array([0])}, "objects rather than numbers"),
        ({"x": np.ones((2, 3)), "y": np.array([0, -1])}, "label 1 of a.npz is -1, outside the 1 classes, 0 to 0"),
        ({"x": np.ones((0, 3)), "y": np.array([], dtype=int)}, "holds no training examples"),
        ({"x": np.ones((2, 0)), "y": np.array([0, 1])}, "holds no training examples"),
    ):
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            np.savez(path, **content)
        assert expected in _sentence(path)
    np.savez(path, x=np.ones((2, 3)), y=np.array([0, 1]))
    assert "has no test split" in _sentence(path, split="test")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_inputs_are_refused_by_index(tmp_path, value):
    x = np.ones((4, 3))
    x[2, 1] = value
    np.savez(tmp_path / "a.npz", x=x, y=np.zeros(4, dtype=int))
    with pytest.raises(NonFiniteError, match=r"input 2 of a\.npz"):
        load_data(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", x=np.ones((4, 3)), y=x[:, 1])
    with pytest.raises(NonFiniteError, match=r"target 2 of a\.npz"):
        load_data(tmp_path / "a.npz")


def test_defective_texts_are_one_sentence(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"too short")
    assert "too short" in _sentence(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_bytes(b"binary\0" * 100)
    assert "not a text file" in _sentence(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_bytes(b"x" * 100)
    assert "block_size" in _sentence(tmp_path / "a.txt", block_size=0)
    assert "cannot be read" in _sentence(f"text:{tmp_path}")


@pytest.mark.parametrize(
    ("shape", "kind", "expected"),
    [
        ((2, 64), "flat", (2, 64)),
        ((2, 3, 4, 4), "flat", (2, 48)),
        ((2, 64), "image", (2, 1, 8, 8)),
        ((2, 3072), "image", (2, 3, 32, 32)),
        ((2, 28, 28), "image", (2, 1, 28, 28)),
        ((2, 65), "image", (2, 65)),
        ((2, 1, 28, 27), "rows", (2, 28, 27)),
        ((2, 3, 4, 5), "rows", (2, 4, 15)),
        ((2, 7, 5), "rows", (2, 7, 5)),
        ((2, 64), "rows", (2, 8, 8)),
    ],
)
def test_inputs_are_arranged_for_the_first_layer(shape, kind, expected):
    layers = {"flat": nn.Linear(math.prod(expected[1:]), 1), "image": nn.Conv2d(1, 1, 1), "rows": nn.LSTM(1, 1)}
    network = nn.Sequential(nn.Dropout(), layers[kind], nn.Embedding(1, 1))
    assert arrange_inputs(torch.zeros(shape), network).shape == expected


@pytest.mark.parametrize("layer", [nn.Embedding(1, 1), nn.Linear(5, 1), nn.Identity()])
def test_inputs_stay_as_they_are_where_no_rule_fits(layer):
    inputs = torch.zeros(2, 3, 4, dtype=torch.int64)
    assert arrange_inputs(inputs, layer) is inputs


def test_a_row_holds_the_same_row_of_each_channel():
    image = torch.arange(24.0).view(1, 2, 3, 4)
    assert arrange_inputs(image, nn.LSTM(1, 1))[0, 1].tolist() == [*image[0, 0, 1].tolist(), *image[0, 1, 1].tolist()]


@_needs("mnist")
def test_mnist_itself_is_read():
    data = load_data(_DATA / "mnist", split="test")
    assert data.inputs.shape == (10_000, 1, 28, 28)
    assert data.targets[:5].tolist() == [7, 2, 1, 0, 4]  # the well-known first test digits
    assert abs(data.inputs.mean()) < 0.02 and abs(data.inputs.std() - 1) < 0.02


@_needs("cifar-10-batches-bin")
def test_cifar_itself_is_read():
    data = load_data(_DATA, num_examples=2000)
    assert data.inputs.shape == (2000, 3, 32, 32)
    assert data.inputs.mean().abs() < 0.05 and abs(data.inputs.std() - 1) < 0.05
