"""The journal: interrupted anywhere, an analysis goes on to the same numbers, and never with another's products."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyhessian_spectra import EmpiricalRisk, HessianOperator, SpectralAnalysis, analyze
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.notes import Note
from pyhessian_spectra.runs import journal as journal_module
from pyhessian_spectra.runs.records import digest, read_record, write_record
from pyhessian_spectra.spectra.basis import KrylovBasis

SMALL = {"num_eigenvalues": 2, "num_steps": 5, "max_steps": 10, "trace_probes": 3, "tol": 1e-2, "layers": ["2"]}
PATHS = {"matrix-free": {"exact_limit": 0}, "exact": {"exact_limit": 3000}}


class Killed(BaseException):
    """The process ends here."""


class Operator(HessianOperator):
    """Counts its products, and is killed instead of taking one too many."""

    taken, allowed = 0, 10**9

    def _count(self, columns: int) -> None:
        if Operator.taken + columns > Operator.allowed:
            raise Killed
        Operator.taken += columns

    def _matvec(self, v):
        self._count(1)
        return super()._matvec(v)

    def _observe(self, v, look):
        self._count(1)
        return super()._observe(v, look)

    def _matmat(self, v):
        self._count(v.shape[1])
        return torch.stack([HessianOperator._matvec(self, column) for column in v.unbind(1)], dim=1)


def risk(*, scale: float = 1.0, shift: float = 0.0, smoothing: float = 0.0) -> EmpiricalRisk:
    """35 parameters and 12 examples in two batches, in float32."""
    rng = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):  # what it draws is replaced
        model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=rng))
    x, y = torch.randn(12, 4, generator=rng) + shift, torch.randint(3, (12,), generator=rng)

    def loss(outputs, targets):
        return F.cross_entropy(outputs, targets, label_smoothing=smoothing)

    return EmpiricalRisk(model, loss, [(x[:7], y[:7]), (x[7:], y[7:])])


def run(journal: Path | None, allowed: int | None = None, *, of: EmpiricalRisk | None = None, **settings):
    """An analysis and how many products it took, or None where it was killed after those that are allowed."""
    Operator.taken, Operator.allowed = 0, 10**9 if allowed is None else allowed
    generator = torch.Generator().manual_seed(settings.pop("seed", 1))
    arguments = {**SMALL, "matrix": Operator, "generator": generator, **settings}
    try:
        return analyze(of or risk(), journal=journal, **arguments), Operator.taken
    except Killed:
        return None, Operator.taken


def same(found: SpectralAnalysis, other: SpectralAnalysis) -> bool:
    """Whether all numbers are, bit for bit, eigenvectors included."""
    one, two = found.to_json(), other.to_json()
    if (
        any(one[key] != two[key] for key in ("full", "layers"))
        or found.timing["num_products"] != other.timing["num_products"]
    ):
        return False
    pairs = [(found.full, other.full), *zip(found.layers.values(), other.layers.values(), strict=True)]
    return all(
        np.array_equal(a.spectrum.nodes, b.spectrum.nodes)
        and np.array_equal(a.spectrum.weights, b.spectrum.weights)
        and np.array_equal(a.largest.eigenvectors, b.largest.eigenvectors)
        and np.array_equal(a.smallest.eigenvectors, b.smallest.eigenvectors)
        for a, b in pairs
    )


def of_the_journal(analysis: SpectralAnalysis) -> list[str]:
    return [note.text for note in analysis.notes if note.kind in ("resumed", "afresh", "journal")]


@pytest.fixture(scope="module")
def whole() -> SpectralAnalysis:
    """The analysis that was never interrupted, without a journal."""
    return run(None, **PATHS["matrix-free"])[0]


@pytest.mark.parametrize("path", PATHS)
def test_a_journal_changes_no_number(tmp_path, path):
    plain, taken = run(None, **PATHS[path])
    kept, as_many = run(tmp_path / "j", **PATHS[path])
    assert same(kept, plain) and as_many == taken == plain.timing["num_products"]
    assert kept.notes == plain.notes


def test_killed_after_any_product_it_goes_on_to_the_same_numbers_with_the_products_that_were_left(tmp_path, whole):
    total = int(whole.timing["num_products"])
    assert total > whole.full.num_products > 20 and len(whole.layers) == 1
    for done in range(total):
        assert run(tmp_path / "j", done, **PATHS["matrix-free"]) == (None, done)
        found, taken = run(tmp_path / "j", **PATHS["matrix-free"])
        assert same(found, whole), done
        assert taken == total - done
        resumed = f"Resumed: {done} of its {total} products are of an earlier run, which was interrupted."
        assert found.notes == (*whole.notes, *([Note("resumed", resumed)] if done else []))
        shutil.rmtree(tmp_path / "j")


def test_killed_again_and_again_it_still_ends_with_the_same_numbers(tmp_path, whole):
    found, runs = None, 0
    while found is None:
        found, _ = run(tmp_path / "j", 9, **PATHS["matrix-free"])
        runs += 1
    assert same(found, whole) and runs == -(-whole.timing["num_products"] // 9)


def test_the_exact_path_is_resumed_too(tmp_path):
    plain, total = run(None, **PATHS["exact"])
    for done in (4 + 35, total - 1):  # what looks for parallel rows, and the matrix at once
        assert run(tmp_path / "j", done, **PATHS["exact"]) == (None, done)
        found, taken = run(tmp_path / "j", **PATHS["exact"])
        assert same(found, plain) and taken == total - done
        shutil.rmtree(tmp_path / "j")


# What the file holds


def records(journal: Path) -> Iterator[int]:
    """Where each record ends, what the journal is bound to first."""
    with open(journal / "products", "rb") as handle:
        while read_record(handle):
            yield handle.tell()


def test_a_torn_record_is_taken_again(tmp_path, whole):
    run(tmp_path / "j", 12, **PATHS["matrix-free"])
    file = tmp_path / "j" / "products"
    content, (*_, before, end) = file.read_bytes(), records(tmp_path / "j")
    assert end == len(content)
    for cut in (before + 1, (before + end) // 2, end - 1):
        file.write_bytes(content[:cut])
        found, taken = run(tmp_path / "j", **PATHS["matrix-free"])
        assert same(found, whole) and taken == whole.timing["num_products"] - 11
        assert "Resumed: 11 of" in found.notes[-1].text


def test_a_record_that_is_damaged_ends_what_is_given_back(tmp_path, whole):
    run(tmp_path / "j", 12, **PATHS["matrix-free"])
    file = tmp_path / "j" / "products"
    content, ends = file.read_bytes(), list(records(tmp_path / "j"))
    for at in (ends[3] + 5, (ends[3] + ends[4]) // 2, ends[4] - 1):  # head, product and checksum of the fourth
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        found, taken = run(tmp_path / "j", **PATHS["matrix-free"])
        assert same(found, whole) and taken == whole.timing["num_products"] - 3


def test_records_give_back_what_was_written(tmp_path):
    arrays = [torch.arange(6.0).reshape(2, 3), torch.tensor(2.5, dtype=torch.float64), torch.ones(4, 2).T]
    with open(tmp_path / "f", "wb") as handle:
        write_record(handle, {"a": [1, None]}, arrays)
    with open(tmp_path / "f", "rb") as handle:
        record = read_record(handle)
        assert read_record(handle) is None
    assert record.head["a"] == [1, None]
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(record.arrays, arrays, strict=True))


def test_digests_tell_values_shapes_dtypes_and_names_apart_and_no_addresses():
    x = torch.arange(4.0)
    values = [x, x.reshape(2, 2), x.double(), -x, [x, x], [[x], x], {"a": x}, {"b": x}, 1, "1", None, [], ["", ""]]
    assert len({digest(value) for value in values}) == len(values)
    assert digest(object()) == digest(object())
    assert digest(x.reshape(2, 2).T) == digest(torch.tensor([[0.0, 2.0], [1.0, 3.0]]))


# What it is bound to


@pytest.mark.parametrize(
    ("named", "changed"),
    [
        ("other settings", {"tol": 2e-2}),
        ("other settings", {"layers": ["0"]}),
        ("another seed", {"seed": 2}),
        ("another checkpoint", {"of": risk(scale=0.5)}),
        ("other data", {"of": risk(shift=0.5)}),
        ("another loss", {"of": EmpiricalRisk(risk().model, nn.CrossEntropyLoss(), risk().data)}),
        ("another gradient", {"of": risk(smoothing=1e-6)}),
    ],
)
def test_what_was_kept_of_anything_else_is_not_used_and_that_is_said(tmp_path, named, changed):
    run(tmp_path / "j", 12, **PATHS["matrix-free"])
    arguments = {**PATHS["matrix-free"], **changed}
    found, taken = run(tmp_path / "j", **arguments)
    fresh, all_products = run(None, **arguments)
    assert same(found, fresh) and taken == all_products
    (note,) = of_the_journal(found)
    assert note.startswith("Started afresh: ") and named in note
    again, none = run(tmp_path / "j", **arguments)  # which it is bound to from now on
    assert same(again, fresh) and none == 0


def test_products_with_other_vectors_than_are_asked_for_are_dropped(tmp_path, monkeypatch, whole):
    """As on another number of threads, where sums of many terms are rounded otherwise."""
    run(tmp_path / "j", 30, **PATHS["matrix-free"])
    inner = KrylovBasis.append

    def rounded_otherwise(self, v, norm):
        return inner(self, v, norm).mul_(1 + 2 * torch.finfo(v.dtype).eps * (len(self) == 6))

    monkeypatch.setattr(KrylovBasis, "append", rounded_otherwise)
    found, taken = run(tmp_path / "j", **PATHS["matrix-free"])
    fresh, total = run(None, **PATHS["matrix-free"])
    assert not same(fresh, whole) and same(found, fresh)
    dropped, resumed = of_the_journal(found)
    assert dropped.startswith("Started afresh after ") and resumed.startswith("Resumed: ")
    used = int(resumed.split()[1])
    assert 0 < used < 30 and taken == total - used and f"after {used} products" in dropped


def test_a_seed_that_was_drawn_is_drawn_once(tmp_path):
    assert run(tmp_path / "j", 12, generator=None, **PATHS["matrix-free"])[0] is None
    found, taken = run(tmp_path / "j", generator=None, **PATHS["matrix-free"])
    assert taken == found.timing["num_products"] - 12


def test_an_analysis_that_is_finished_is_given_back_whole(tmp_path):
    first, _ = run(tmp_path / "j", problem={"checkpoint": "a"}, **PATHS["matrix-free"])
    assert (tmp_path / "j" / "products").stat().st_size < 3 * 35 * 4 + 2000  # none of the products
    again, taken = run(tmp_path / "j", problem={"checkpoint": "b"}, **PATHS["matrix-free"])
    assert taken == 0 and same(again, first) and again.timing == first.timing
    assert again.problem == {**first.problem, "checkpoint": "b"}
    assert again.notes == (*first.notes, Note("resumed", "Resumed: the analysis was finished by an earlier run."))
    (tmp_path / "j" / "analysis.npz").unlink()
    found, taken = run(tmp_path / "j", **PATHS["matrix-free"])
    assert same(found, first) and taken == first.timing["num_products"]
    assert "can no longer be read" in found.notes[-1].text


# Where it cannot be written


def test_a_folder_that_is_not_a_journal_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "products").write_text("apples, pears\n")
    for name, part in (
        ("mine", "not empty"),
        ("other", "damaged at its head"),
        ("mine/notes.txt", "cannot be written"),
    ):
        with pytest.raises(InputError, match=part):
            run(tmp_path / name, **PATHS["matrix-free"])
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "other" / "products").read_text() == "apples, pears\n"


def test_a_place_that_cannot_be_written_is_told_before_the_first_product_is_lost(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"journal .*cannot be written"):
        run(tmp_path / "file" / "j", **PATHS["matrix-free"])
    assert Operator.taken == 0


def test_nothing_is_written_before_the_first_product(tmp_path):
    assert run(tmp_path / "j", 0, **PATHS["matrix-free"]) == (None, 0)
    assert not (tmp_path / "j").exists()


def test_a_disk_that_fills_up_stops_the_journal_and_not_the_analysis(tmp_path, monkeypatch, whole):
    inner, left = journal_module.write_record, iter(range(10))

    def limited(handle, head, arrays):
        if next(left, None) is None:
            handle.write(b"torn")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        inner(handle, head, arrays)

    monkeypatch.setattr(journal_module, "write_record", limited)
    found, _ = run(tmp_path / "j", **PATHS["matrix-free"])
    assert same(found, whole)
    (note,) = of_the_journal(found)
    assert "No space left on device" in note
    monkeypatch.undo()
    again, taken = run(tmp_path / "j", **PATHS["matrix-free"])  # what was kept until then is of use
    assert same(again, whole) and taken == whole.timing["num_products"] - 9


def test_a_disk_without_room_is_told_beforehand_and_left_alone(tmp_path, monkeypatch, whole):
    usage = shutil.disk_usage(tmp_path)._replace(free=5_000)
    monkeypatch.setattr(journal_module.shutil, "disk_usage", lambda path: usage)
    found, _ = run(tmp_path / "j", **PATHS["matrix-free"])
    assert same(found, whole) and not (tmp_path / "j").exists()
    (note,) = of_the_journal(found)
    assert "more than half of the 0.0 GiB that are free" in note


def test_a_journal_whose_beginning_is_damaged_is_begun_anew(tmp_path, whole):
    run(tmp_path / "j", 20, **PATHS["matrix-free"])
    file = tmp_path / "j" / "products"
    held = bytearray(file.read_bytes())
    held[60] ^= 1
    file.write_bytes(held)
    found, taken = run(tmp_path / "j", **PATHS["matrix-free"])
    assert same(found, whole) and taken == whole.timing["num_products"]
    assert of_the_journal(found) == ["Started afresh: what an interrupted run had kept is damaged."]


@pytest.mark.parametrize("at", [0, 5, 9])
def test_a_journal_whose_head_is_damaged_says_so_and_how_to_go_on(tmp_path, at):
    run(tmp_path / "j", 5, **PATHS["matrix-free"])
    file = tmp_path / "j" / "products"
    held = bytearray(file.read_bytes())
    held[at] ^= 1
    file.write_bytes(held)
    with pytest.raises(InputError, match=r"journal .* is damaged at its head .* remove it, .*--fresh"):
        run(tmp_path / "j", **PATHS["matrix-free"])
    assert file.read_bytes() == held


def test_a_matrix_of_one_parameter_has_a_journal_too(tmp_path):
    model, x = nn.Linear(1, 1, bias=False), torch.linspace(-1, 1, 6)[:, None]
    one = EmpiricalRisk(model, nn.MSELoss(), [(x[:2], x[:2]), (x[2:], x[2:])])
    for limit in (3000, 0):
        first, again = (analyze(one, exact_limit=limit, journal=tmp_path / str(limit)) for _ in range(2))
        assert first.full.largest.eigenvalues == pytest.approx(again.full.largest.eigenvalues)
