"""The experiments of examples/singularity run in their fast setting, and judge numbers rather than assert results."""

import importlib
import json
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples" / "singularity"
OUTPUTS = {
    "growing_networks": ("growing_networks", "heatmaps"),
    "many_starts": ("many_starts",),
    "growing_blobs": ("growing_blobs",),
    "mnist": ("mnist",),
    "interpolation": ("interpolation",),
}


@pytest.fixture
def example(monkeypatch):
    """Import an example as ``python examples/singularity/name.py`` would."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


def reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_fast_setting_writes_its_figure_and_numbers(name, example, tmp_path, capsys):
    example(name).main(["--fast", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{output}.{suffix}" for output in OUTPUTS[name] for suffix in ("json", "png")
    }
    for output in OUTPUTS[name]:
        document = json.loads((tmp_path / f"{output}.json").read_text(), parse_constant=reject_constant)
        assert document["command"] == f"python examples/singularity/{name}.py --fast --seed 0"
        assert (tmp_path / f"{output}.png").read_bytes().startswith(b"\x89PNG")
        for finding in document["findings"]:
            verdict = "came out" if finding["holds"] else "did NOT come out"
            assert f"({finding['letter']}) {verdict}: {finding['statement']}" in printed


def network_entry(near: float, edges: list[int], smallest: float) -> dict:
    return {
        "near_zero_mass": {"median": near},
        "edges_above": edges,
        "smallest": {"median": smallest},
        "largest": [{"median": 1.0}],
        "second_over_third": {"median": 5.0},
    }


def test_findings_on_growing_networks_follow_the_numbers(example):
    judge = example("growing_networks").findings
    good = {"18": network_entry(0.5, [2, 2, 3], -0.01), "74": network_entry(0.7, [2, 2, 1], -0.02)}
    assert [finding.holds for finding in judge(good)] == [True, True, True]
    bad = {"18": network_entry(0.7, [2, 2], 0.0), "74": network_entry(0.5, [3, 3], -0.02)}
    assert [finding.holds for finding in judge(bad)] == [False, False, False]


def test_findings_on_growing_blobs_follow_the_numbers(example):
    judge = example("growing_blobs").findings

    def entry(middle: float, spread: float) -> dict:
        one = {"p10": middle / spread, "median": middle, "p90": middle * spread}
        return {"largest": [one, one, one], "edges_above": [2]}

    def holds(first: dict, last: dict) -> list[bool]:
        return [finding.holds for finding in judge({"0.3": first, "1.0": last})]

    assert holds(entry(1.0, 1.1), entry(100.0, 1.1)) == [True, True]
    assert holds(entry(1.0, 20.0), entry(100.0, 1.1)) == [False, False]
    assert holds(entry(1.0, 1.1), entry(0.5, 1.1)) == [False, False]
    falling = entry(100.0, 1.1)
    falling["largest"] = [falling["largest"][0], entry(0.5, 1.1)["largest"][1]]
    assert holds(entry(1.0, 1.1), falling) == [True, False]


def test_findings_on_interpolation_follow_the_numbers(example):
    module = example("interpolation")

    def line(barrier: float, lowest: float) -> dict:
        return {"barrier": {"median": barrier}, "lowest": {"median": lowest}}

    held = module.findings(dict(zip(module.LINES, (line(0.0, 0.2), line(1.0, 0.1)), strict=True)), 2.3)
    assert [finding.holds for finding in held] == [True, True, True]
    failed = module.findings(dict(zip(module.LINES, (line(1.0, 0.1), line(0.5, 0.2)), strict=True)), 2.3)
    assert [finding.holds for finding in failed] == [False, False, False]
