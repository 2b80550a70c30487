"""The documentation is true: its examples run, its commands exist, and it leaves nothing out."""

from __future__ import annotations

import code
import contextlib
import doctest
import importlib.util
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import pyhessian_spectra
from pyhessian_spectra import (
    EmpiricalRisk,
    ensembles,
    errors,
    optimisers,
    plots,
    problems,
    regularisers,
    report,
    testing,
    tracking,
)
from pyhessian_spectra.analysis import bulk, fits, metrics, symmetry
from pyhessian_spectra.cli.main import commands

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*/*.rst")),
    ROOT / "docs/index.rst",
]
RUNNABLE = [page for page in PAGES if page.suffix == ".rst" and ">>> " in page.read_text()]

pytestmark = pytest.mark.skipif(
    not (ROOT / "docs").is_dir(), reason="the documentation is not part of this installation"
)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Examples write files and seed torch."""
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(devices=[]):
        yield


def _relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", RUNNABLE, ids=_relative)
def test_examples_print_what_the_page_says(page: Path, tmp_path: Path) -> None:
    failed, tried = doctest.testfile(str(page), module_relative=False, optionflags=doctest.ELLIPSIS, verbose=False)
    assert tried and not failed
    left = sorted(path.name + "/" * path.is_dir() for path in tmp_path.iterdir())
    if left and (ROOT / ".git").exists():  # a reader follows the page in a clone
        ignored = subprocess.run(["git", "check-ignore", *left], cwd=ROOT, capture_output=True, text=True).stdout
        assert ignored.split() == left


@pytest.mark.parametrize("page", RUNNABLE, ids=_relative)
def test_examples_can_be_pasted_into_a_python_prompt(page: Path) -> None:
    """Line by line, as the button copies them: no block runs into the next statement."""
    prompt = re.compile(r"(?:>>> ?|\.\.\. ?)(.*)")
    expected = sum(example.exc_msg is not None for example in doctest.DocTestParser().get_examples(page.read_text()))
    console, told = code.InteractiveConsole(), io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        for line in filter(None, map(prompt.match, page.read_text().splitlines())):
            waiting = console.push(line[1])
            assert told.getvalue().count("Traceback") <= expected and "SyntaxError" not in told.getvalue(), (
                told.getvalue()
            )
    assert not waiting and told.getvalue().count("Traceback") == expected


def _readme_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_readme_example_runs_when_it_is_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    console = code.InteractiveConsole()
    assert not any(console.push(line) for line in _readme_blocks()[0].splitlines())
    shown = capsys.readouterr()
    assert "between" in shown.out and not shown.err


def test_readme_factory_serves_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "my_problem.py").write_text(_readme_blocks()[1])
    torch.save(nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1)).state_dict(), tmp_path / "my_model.pt")
    (command,) = (line for line in _commands(ROOT / "README.md") if "my_problem:load" in line)
    done = CliRunner().invoke(commands, shlex.split(command)[1:], catch_exceptions=False)
    sys.modules.pop("my_problem", None)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "report" / "report.html").exists()


def test_own_problem_example_builds_a_risk(tmp_path: Path) -> None:
    example = _load(ROOT / "examples" / "own_problem.py")
    torch.save(example.TwoBranches().state_dict(), tmp_path / "own.pt")
    risk = example.load(str(tmp_path / "own.pt"))
    assert isinstance(risk, EmpiricalRisk)
    assert risk.n == 2 * (4 * 12 + 12) + 25


def test_quickstart_example_writes_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _load(ROOT / "examples" / "quickstart.py")
    assert "trace" in capsys.readouterr().out
    assert (tmp_path / "quickstart-report" / "report.html").exists()


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _commands(page: Path) -> list[str]:
    """Command lines of this package in a page, continued lines joined."""
    text = page.read_text().replace("\\\n", " ")
    return re.findall(r"^\s*(?:\$ )?(pyhessian-spectra (?:demo|report|compare|doctor)\b.*)$", text, re.MULTILINE)


def test_every_command_in_the_documentation_parses() -> None:
    found = [(page, line) for page in PAGES for line in _commands(page)]
    assert len(found) >= 8
    for page, line in found:
        _, name, *arguments = shlex.split(line, comments=True)
        try:
            commands.commands[name].make_context(name, arguments)
        except click.ClickException as error:
            pytest.fail(f"{_relative(page)}: {line}: {error.format_message()}")


def test_the_reference_lists_every_public_name() -> None:
    pages = "".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.rst"))
    listed = set(re.findall(r"^   ([A-Za-z_]+)$", pages, re.MULTILINE)) - {"python", "singularity"}
    public = {name for name in pyhessian_spectra.__all__ if not name.startswith("__")}
    for package in (ensembles, optimisers, plots, problems, regularisers, report, tracking):
        public |= {name for name, value in vars(package).items() if _is_ours(value)}
    for module in (errors, bulk, fits, metrics, symmetry, testing):
        public |= {name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
    public = {name for name in public if not name.startswith("_")}
    assert not public - listed, "missing from docs/reference"
    assert not listed - public, "in docs/reference, but not public"


def _is_ours(value: object) -> bool:
    return str(getattr(value, "__module__", "")).startswith("pyhessian_spectra")


def test_links_within_the_repository_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("https://") or (ROOT / target).exists(), f"{page.name}: {target}"


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("sphinx", "furo", "numpydoc", "sphinx_copybutton")),
    reason="Sphinx or one of its extensions is not installed; pip install '.[docs]'",
)
def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run([*build, str(ROOT / "docs"), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--exact-limit" in (tmp_path / "reference" / "command-line.html").read_text()
    assert "seconds_per_gradient" in (tmp_path / "how-to" / "results-json.html").read_text()
