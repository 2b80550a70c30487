"""The report says every number with its error, holds everything it needs, and opens anywhere."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from xml.etree import ElementTree

import numpy as np
import pytest
from analyses import exact_analysis, slq_analysis, training_run
from pages import Page, outline

from pyhessian_spectra.analysis.saved import load_analyses, save_analyses
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.notes import Note
from pyhessian_spectra.report import format_with_error, write_report

HOSTILE = "<script>alert('x')</script>&\"$\\frac$"


@pytest.fixture(scope="module")
def single(slq, tmp_path_factory):
    return write_report([slq], tmp_path_factory.mktemp("single"), reproduce=["pyhessian-spectra report x.pt"])


@pytest.fixture(scope="module")
def several(slq, tmp_path_factory):
    run = [*training_run((0, 1000)), slq]
    return write_report(run, tmp_path_factory.mktemp("several"))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    analysis = exact_analysis(f"runs/{HOSTILE}", n=200, note=HOSTILE)
    layers = {HOSTILE: analysis.full, "x" * 300: analysis.full}
    analysis = dataclasses.replace(analysis, layers=layers, notes=(Note("data", HOSTILE),))
    return write_report([analysis, analysis], tmp_path_factory.mktemp("hostile"), reproduce=[HOSTILE])


@pytest.mark.parametrize("report", ["single", "several", "hostile"])
def test_the_page_refers_to_nothing_outside_itself(report, request):
    path = request.getfixturevalue(report)
    page = Page(path)
    assert all(reference.startswith(("data:", "#")) for reference in page.references())
    assert not re.search(r"https?://|//[a-z]|url\(|@import", outline(path))
    for svg in (path.parent / "figures").iterdir():
        links = [value for element in ElementTree.parse(svg).iter() for key, value in element.items() if "href" in key]
        assert all(link.startswith("#") for link in links)
    targets = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert {reference[1:] for reference in page.references() if reference.startswith("#")} <= targets


def test_the_page_forbids_everything_but_its_own_style_and_images(single):
    policy = next(attrs["content"] for tag, attrs in Page(single).tags if attrs.get("http-equiv"))
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy


def test_names_are_text_whatever_they_contain(hostile):
    page = Page(hostile)
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(HOSTILE) >= 5  # a fact, a note, a layer, the unabridged checkpoint, the command
    for svg in (hostile.parent / "figures").glob("*.svg"):
        assert not [element for element in ElementTree.parse(svg).iter() if element.tag.endswith("script")]


def test_the_summary_has_the_key_numbers_with_their_errors(slq, single):
    words = Page(single).words()
    full = slq.full
    top = format_with_error(full.largest.eigenvalues[-1], full.largest.reach[-1])
    for text in (f"λ₁ = {top}", format_with_error(full.trace.value, full.trace.reach), "n = 4,000", "N = 1,500"):
        assert text in words[: words.index("Density of eigenvalues")]


def test_every_eigenpair_is_in_a_table_and_marked_when_not_converged(slq, single):
    rows = Page(single).trimmed_rows()
    for found in (slq.full.largest, slq.full.smallest):
        for value, error, done in zip(found.eigenvalues, found.reach, found.converged, strict=True):
            row = next(row for row in rows if re.match(r"\d+ ", row) and format_with_error(value, error) in row)
            assert ("not converged" in row) is not bool(done)


def test_what_did_not_converge_stands_before_the_results(slq, single):
    words = Page(single).words()
    start, results = words.index("What did not converge"), words.index("What was analysed")
    total = slq.full.unconverged + sum(block.unconverged for block in slq.layers.values())
    assert start < results and f"{total} of 80 eigenpairs" in words
    assert "layer1.0.conv1 2 of 16" in words[start:results]
    assert slq.notes[0].text in words[start:results]


def test_full_convergence_is_said_with_the_largest_residual(tmp_path):
    words = Page(write_report([exact_analysis(layers=False, tol=1e-6)], tmp_path)).words()
    assert "Everything converged and is certified All 16 eigenpairs met the tolerance (1×10⁻⁶); the largest" in words
    assert "What did not converge" not in words


def test_what_could_not_be_verified_stands_first_and_nothing_is_called_certified(converged, tmp_path):
    doubted = dataclasses.replace(converged, notes=(Note("verification", "Products may be wrong."),))
    words = write_report([doubted], tmp_path).read_text()
    assert words.count("Products may be wrong.") == 1 and "and is certified" not in words
    assert words.index("Products may be wrong.") < words.index("Everything converged")


def test_the_report_names_the_matrix_that_was_analysed(tmp_path):
    words = Page(write_report([exact_analysis(n=200, layers=False, matrix="GGN")], tmp_path)).words()
    assert words.startswith("Generalised Gauss-Newton matrix spectrum of mlp on digits")
    assert "This is the generalised Gauss-Newton matrix" in words


def test_several_checkpoints_have_an_overview_and_a_section_each(several):
    page = Page(several)
    assert page.words().index("Across checkpoints") < page.words().index("What was analysed")
    sections = [attrs for tag, attrs in page.tags if tag == "details"]
    assert len(sections) == 3
    for name in ("runs/step-00000.pt", "runs/step-01000.pt", "resnet20.pt"):
        assert any(row.startswith(f"{name} ") for row in page.trimmed_rows())


def test_every_figure_is_a_file_and_inline(several):
    files = sorted(path.name for path in (several.parent / "figures").iterdir())
    images = [attrs for tag, attrs in Page(several).tags if tag == "img"]
    assert len(files) == len(images) == 2 + 3 * 6 + 1  # one spectrum is an estimate, whose CDF has bounds
    assert all(attrs["alt"] and attrs["src"].startswith("data:image/svg+xml;base64,") for attrs in images)


def test_layers_and_eigenpairs_may_be_absent(tmp_path):
    analysis = exact_analysis(n=50, layers=False)
    none = analysis.full.largest.take(slice(0, 0))
    bare = dataclasses.replace(
        analysis, full=dataclasses.replace(analysis.full, largest=none, smallest=none), timing={}, problem={}
    )
    words = Page(write_report([bare], tmp_path)).words()
    assert "No single eigenvalues were computed." in words and "did not converge" not in words[:800]


def test_a_report_from_saved_analyses_is_the_same_to_the_byte(slq, tmp_path):
    analyses = [exact_analysis(n=200), dataclasses.replace(slq, layers={})]
    json_path, npz_path = tmp_path / "results.json", tmp_path / "spectra.npz"
    save_analyses(analyses, json_path=json_path, npz_path=npz_path)
    direct = write_report(analyses, tmp_path / "direct")
    loaded = write_report(load_analyses(json_path=json_path, npz_path=npz_path), tmp_path / "loaded")
    assert direct.read_bytes() == loaded.read_bytes()


def test_a_note_is_said_once(tmp_path):
    analyses = [
        dataclasses.replace(each, layers={}, notes=(Note("data", "The same."),)) for each in training_run((0, 1, 2))
    ]
    analyses[1] = dataclasses.replace(analyses[1], notes=(Note("data", "The same."), Note("data", "Only here.")))
    words = Page(write_report(analyses, tmp_path)).words()
    assert words.count("The same.") == 1 and "Notes The same. step-00001.pt: Only here." in words


def test_only_figures_of_an_earlier_report_are_removed(converged, tmp_path):
    write_report(training_run((0, 1)), tmp_path)
    for kept in ("mine.svg", "01-mine.svg", "density.png"):
        (tmp_path / "figures" / kept).write_text("kept")
    write_report([dataclasses.replace(converged, layers={})], tmp_path)
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {"density.svg", "cdf.svg", "eigenvalues.svg", "mine.svg", "01-mine.svg", "density.png"}


def test_a_report_of_twenty_layers_stays_small(tmp_path):
    analysis = slq_analysis(n=1000, probes=3, steps=40, layer_names=[f"layer{i}" for i in range(20)])
    assert write_report([analysis], tmp_path).stat().st_size < 1_500_000


def test_a_report_leaves_other_files_alone_and_no_partial_ones(tmp_path):
    (tmp_path / "results.json").write_text("kept")
    write_report([exact_analysis(n=200)], tmp_path)
    assert (tmp_path / "results.json").read_text() == "kept"
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "report.html", "table.csv", "figures"}
    assert all(path.suffix == ".svg" and path.name[0] != "." for path in (tmp_path / "figures").iterdir())


def test_wrong_arguments_get_a_sentence(tmp_path):
    analysis = exact_analysis(n=200, layers=False)
    for wrong in ([], analysis):
        with pytest.raises(InputError, match="at least one SpectralAnalysis"):
            write_report(wrong, tmp_path)
    with pytest.raises(InputError, match="sequence of commands"):
        write_report([analysis], tmp_path, reproduce="make report")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_report([analysis], tmp_path / "file")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium that keeps its console and its network log; one for all pages."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    chromedriver = shutil.which("chromedriver")
    if not chromium or not chromedriver:
        pytest.skip("Chromium or chromedriver is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    switches = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    for switch in f"{switches} disable-component-update disable-sync".split():
        options.add_argument(f"--{switch}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def wordy(tmp_path_factory):
    """Names without a place to break them, a layer of 300 letters, facts by the dozen, and something of every kind."""
    names = ["encoder.transformer.blocks.11.attention.output_projection.weight_" + "x" * 300, "y" * 60, "z"]
    facts = {f"optimizer.parameter_groups.{i}.a_rather_long_name_of_a_setting": 0.1 * i for i in range(12)}
    first = slq_analysis("run/" + "w" * 120 + ".pt", n=1000, probes=2, steps=40, layer_names=names, **facts)
    full = dataclasses.replace(first.full, group_traces={name: first.full.trace for name in names})
    errors = {
        edge: dataclasses.replace(getattr(full, edge), data_stderr=np.full(8, 12345.678))
        for edge in ("largest", "smallest")
    }
    full = dataclasses.replace(full, **errors, trace=dataclasses.replace(full.trace, data_stderr=1.2e-7))
    second = dataclasses.replace(first, full=full, layers={}, problem={**first.problem, "model": "m" * 90})
    return write_report([first, second], tmp_path_factory.mktemp("wordy"), reproduce=["pyhessian-spectra " + "v" * 400])


# Pairs of texts on a page, each in an element of its own, that share more than a pixel either way.
OVERLAPS = """
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), boxes = [];
while (walker.nextNode()) {
  const node = walker.currentNode;
  if (!node.textContent.trim() || !node.parentElement.checkVisibility()) continue;
  const range = document.createRange();
  range.selectNodeContents(node);
  for (const box of range.getClientRects()) if (box.width && box.height) boxes.push([node, box]);
}
for (const image of document.images) boxes.push([image, image.getBoundingClientRect()]);
const found = [];
boxes.forEach(([one, a], i) => boxes.slice(i + 1).forEach(([other, b]) => {
  if (one !== other && Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
      && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 6)
    found.push([one.textContent, other.textContent]);
}));
return found;
"""


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("report", ["single", "several", "hostile", "wordy"])
def test_the_page_opens_in_chromium(browser, request, report, width):
    path = request.getfixturevalue(report)
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    browser.get_log("performance")
    browser.get(path.as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(element => element.open = true)")
    widths = browser.execute_script(
        "return [innerWidth, document.documentElement.scrollWidth, document.body.scrollWidth]"
    )
    assert widths[0] == width and max(widths[1:]) <= width
    assert browser.execute_script(OVERLAPS) == []
    if width == 390 or report in ("single", "several"):  # nothing is cut off, on a desktop unless names are long
        cut = "return [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length"
        assert browser.execute_script(cut) == 0
    drawn = browser.execute_script(
        "return [...document.images].map(i => i.complete && i.naturalWidth > 0 && i.width > 300)"
    )
    assert drawn and all(drawn)
    assert browser.execute_script("return getComputedStyle(document.querySelector('main')).maxWidth") != "none"
    assert browser.get_log("browser") == []
    assert requested(browser.get_log("performance")) == {path.as_uri()}


def requested(log):
    """Addresses asked for, other than those that hold their own content."""
    messages = [json.loads(entry["message"])["message"] for entry in log]
    urls = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    return {url for url in urls if not url.startswith("data:")}
