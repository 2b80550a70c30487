"""The report says every number with its error, holds everything it needs, and opens anywhere."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser
from xml.etree import ElementTree

import jsonschema
import numpy as np
import pytest
import torch
from analyses import exact_analysis, problem, slq_analysis, training_run

from pyhessian_spectra import EmpiricalRisk
from pyhessian_spectra.analysis.analyze import analyze
from pyhessian_spectra.analysis.bulk import split_bulk
from pyhessian_spectra.analysis.fits import fit_semicircle
from pyhessian_spectra.analysis.saved import load_analyses, save_analyses
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.notes import Note
from pyhessian_spectra.numbers import format_number
from pyhessian_spectra.report import format_with_error, results_schema, write_report
from pyhessian_spectra.report.tables import share_text
from pyhessian_spectra.spectra.spectrum import Spectrum

HOSTILE = "<script>alert('x')</script>&\"$\\frac$"


def outline(path):
    """The page without the content of its figures."""
    return re.sub(r"(data:[a-z/+]+;base64,)[^\"]+", r"\1", path.read_text(encoding="utf-8"))


class Page(HTMLParser):
    """What a browser would find: tags with attributes, text, and the text of each table row."""

    VOID = frozenset({"meta", "link", "img", "br"})

    def __init__(self, path):
        super().__init__()
        self.tags, self.rows, self.open = [], [], []
        self.text = ""
        self.feed(outline(path))
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ("td", "th", "dt", "h2"):
            self.handle_data(" ")

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += data
            if "tr" in self.open:
                self.rows[-1] += data

    def trimmed_rows(self):
        return [" ".join(row.split()) for row in self.rows]

    def references(self):
        return [value for _, attrs in self.tags for key, value in attrs.items() if key in ("src", "href", "srcset")]

    def words(self):
        return " ".join(self.text.split())


@pytest.fixture(scope="module")
def slq():
    return slq_analysis()


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


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (15668.3, 262.4, "15,668 ± 262"),
        (3.21042, 0.0003, "3.2104 ± 0.0003"),
        (3.21042, 0.00031, "3.2104 ± 0.0003"),
        (3.21042, 0.00014, "3.21042 ± 0.00014"),
        (-3.21042, 0.04, "−3.21 ± 0.04"),
        (0.0, 0.5, "0.0 ± 0.5"),
        (-0.001, 0.5, "0.0 ± 0.5"),
        (0.99, 0.096, "0.990 ± 0.096"),
        (2.5, 0.0, "2.5 (exact)"),
        (0.0, 0.0, "0 (exact)"),
        (15668.0, 0.0, "15,668 (exact)"),
        (3.2104123456, 1e-13, "3.210412 ± 1.0×10⁻¹³"),
        (1.2345e-9, 2e-11, "(1.234 ± 0.020)×10⁻⁹"),
        (1.5e9, 2e7, "(1.500 ± 0.020)×10⁹"),
        (5.0, 40.0, "5 ± 40"),
        (2.0, float("nan"), "2.00 (error unknown)"),
        (float("nan"), 1.0, "not finite"),
    ],
)
def test_a_value_has_the_digits_its_error_leaves(value, error, text):
    assert format_with_error(value, error) == text


def test_rounding_of_a_formatted_value_is_at_most_its_error():
    rng = np.random.default_rng(0)
    for value, error in zip(rng.normal(size=500) * 10 ** rng.uniform(-12, 12, 500), rng.random(500), strict=True):
        error *= abs(value)
        text = format_with_error(value, error).replace("−", "-").replace(",", "")
        mantissa, _, power = text.partition("×10")
        exponent = int(power.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))) if text.startswith("(") else 0
        shown = float(mantissa.strip("()").split(" ± ")[0]) * 10.0**exponent
        assert abs(shown - value) <= 0.55 * error


def test_a_negative_error_is_refused():
    with pytest.raises(InputError, match="error must not be negative"):
        format_with_error(1.0, -0.1)


@pytest.mark.parametrize(("dtype", "share"), [("float32", "12.5"), ("float64", "37.5")])
def test_zeros_blurred_by_rounding_are_not_negative(tmp_path, dtype, share):
    eigenvalues = np.concatenate([np.full(50, -1e-9), np.full(50, 1e-9), [-1.0] * 25, [10.0] * 75])
    analysis = exact_analysis(n=200, layers=False)
    full = dataclasses.replace(analysis.full, spectrum=Spectrum.from_eigenvalues(eigenvalues, dtype=dtype))
    words = Page(write_report([dataclasses.replace(analysis, full=full)], tmp_path)).words()
    assert f"{share} % (exact) of its eigenvalues are negative" in words


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


def certified(analysis, **changes):
    """The analysis with other certificates on both edges."""
    full = analysis.full
    edges = {key: dataclasses.replace(getattr(full, key), **changes) for key in ("largest", "smallest")}
    return dataclasses.replace(analysis, full=dataclasses.replace(full, **edges), layers={})


@pytest.fixture(scope="module")
def converged():
    return slq_analysis(n=1000, probes=3, layer_names=("linear",), unconverged=0)


def statuses(path):
    """Status by rank of the largest, then of the smallest eigenvalues."""
    found = (
        re.match(r"\d+ .*?((position )?(not )?certified|not converged)$", row) for row in Page(path).trimmed_rows()
    )
    return [match[1] for match in found if match]


def test_an_error_is_the_reach_of_the_certified_interval(converged, tmp_path):
    largest = converged.full.largest
    wide = dataclasses.replace(largest, lower=largest.eigenvalues - 0.3, upper=largest.eigenvalues + 0.1)
    analysis = dataclasses.replace(converged, full=dataclasses.replace(converged.full, largest=wide), layers={})
    rows = Page(write_report([analysis], tmp_path)).trimmed_rows()
    assert any(row.startswith("1 100.0 ± 0.3 0.0010 ") for row in rows)


def test_eigenvalues_among_the_others_have_no_certified_position(converged, tmp_path):
    top, bottom = converged.full.largest.eigenvalues, converged.full.smallest.eigenvalues
    path = write_report([certified(converged, others=(bottom[2] * 1.01, top[-3] * 1.01))], tmp_path)
    sure, unsure = ["certified"] * 2, ["position not certified"] * 6
    assert statuses(path) == [*sure, *unsure, *sure, *unsure]
    assert "With 99 % confidence no further eigenvalue lies above" in Page(path).words()


def test_without_bounds_on_the_others_no_position_is_certified(converged, tmp_path):
    path = write_report([certified(converged, others=None)], tmp_path)
    assert set(statuses(path)) == {"position not certified"}
    words = Page(path).words()
    assert "99 % confidence no further" not in words and "extreme eigenvalues are not all certified" in words


def test_without_intervals_nothing_is_certified(converged, tmp_path):
    assert set(statuses(write_report([certified(converged, lower=None, upper=None)], tmp_path))) == {"not certified"}


def test_all_eigenvalues_of_an_exact_analysis_are_certified(tmp_path):
    path = write_report([exact_analysis(n=200, layers=False)], tmp_path)
    assert set(statuses(path)) == {"certified"}
    assert "there is none beyond those listed" in Page(path).words()


def test_the_bulk_is_what_split_bulk_found(converged, tmp_path):
    split = split_bulk(converged.full, dtype="float32")
    words = Page(write_report([converged], tmp_path)).words()
    assert split.separable and f"Bulk {format_number(split.bulk[0])} to {format_number(split.bulk[1])}" in words
    with pytest.raises(InputError, match="not resolved") as refusal:
        fit_semicircle(converged.full)
    assert f"Semicircle fit none: {refusal.value}" in words
    assert f"Edges above the bulk {split.num_above} distinct" in words


@pytest.mark.parametrize(
    ("mass", "bounds", "text"),
    [
        (0.6, (0.55, 0.64), "60 % (between 55 and 64 %)"),
        (0.99871, (0.9912, 1.0), "99.87 % (between 99.12 and 100 %)"),
        (0.0, (0.0, 0.0004), "0 % (between 0 and 0.040 %)"),
    ],
)
def test_a_share_says_what_is_open_about_it(slq, mass, bounds, text):
    assert share_text(slq.full, mass, bounds) == text
    assert share_text(exact_analysis(n=200).full, 0.19432, (0.19432, 0.19432)) == "19.4 % (exact)"


def test_a_share_whose_bounds_are_wide_is_no_number_anywhere(tmp_path):
    """Nearly all eigenvalues of this one lie around zero, where nothing tells their signs."""
    fuzzy = slq_analysis("fuzzy.pt", n=1000, probes=2, steps=40, layer_names=("fc",), dtype="float64", unconverged=0)
    low, high = split_bulk(fuzzy).negative_bounds
    assert high - low > 0.2
    page = Page(write_report([fuzzy], tmp_path / "one"))
    found = re.search(r"how many are negative is not resolved: (\d+) % lie between", page.words())
    assert found and int(found[1]) == int(100 * (high - low))
    assert "--resolve 80 makes the probes twice as long: 80 further products, about 1.6 s" in page.words()
    assert not [row for row in page.trimmed_rows() if "Negative" in row or "Zero" in row]  # of the layers
    rows = Page(write_report([fuzzy, *training_run((1,))], tmp_path / "two")).trimmed_rows()
    assert any("Negative share" in row for row in rows)  # known of the other
    (row,) = (row for row in rows if row.startswith("fuzzy.pt"))
    assert "not resolved: " in row


def test_a_headline_has_the_digits_of_its_largest_error_and_the_table_the_solver_s(tmp_path):
    analysis = exact_analysis(n=200, layers=False)
    full = analysis.full
    largest = dataclasses.replace(full.largest, eigenvalues=full.largest.eigenvalues * 0 + 2.147464)
    largest = dataclasses.replace(largest, data_stderr=np.full(len(largest), 0.32), lower=None, upper=None)
    trace = dataclasses.replace(full.trace, value=9.580678, data_stderr=1.03)
    full = dataclasses.replace(full, largest=largest, trace=trace)
    page = Page(write_report([dataclasses.replace(analysis, full=full)], tmp_path))
    summary = page.words()[: page.words().index("Density of eigenvalues")]
    assert "λ₁ = 2.1 ± 0.3 from 1,500 examples" in summary and "its trace 9.6 ± 1.0;" in summary
    assert "fresh ones can differ by far" in summary and "2.14746" not in summary and "9.5806" not in summary
    assert any(row.startswith("1 2.147464 ±") and "± 0.32" in row for row in page.trimmed_rows())
    assert "9.580678 (exact) (data: ± 1.0)" in page.words()


def test_a_note_is_said_once(tmp_path):
    analyses = [
        dataclasses.replace(each, layers={}, notes=(Note("data", "The same."),)) for each in training_run((0, 1, 2))
    ]
    analyses[1] = dataclasses.replace(analyses[1], notes=(Note("data", "The same."), Note("data", "Only here.")))
    words = Page(write_report(analyses, tmp_path)).words()
    assert words.count("The same.") == 1 and "Notes The same. step-00001.pt: Only here." in words


def test_convergence_and_certification_are_one_message(converged, tmp_path):
    top, bottom = converged.full.largest.eigenvalues, converged.full.smallest.eigenvalues
    path = write_report([certified(converged, others=(bottom[2] * 1.01, top[-3] * 1.01))], tmp_path)
    assert "Everything converged, 4 of 16 with certified positions" in Page(path).words()
    (section,) = (attrs for _, attrs in Page(path).tags if attrs.get("id") == "convergence")
    assert "plain" in section["class"]


def test_a_spectrum_without_edges_says_why(tmp_path):
    analysis = exact_analysis(n=200, layers=False)
    spectrum = Spectrum.from_eigenvalues(np.linspace(-1, 1, 200))
    full = dataclasses.replace(analysis.full, spectrum=spectrum)
    words = Page(write_report([dataclasses.replace(analysis, full=full)], tmp_path)).words()
    assert "Division not separable: " + split_bulk(full, dtype="float32").reason in words


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


def document(analyses, tmp_path):
    save_analyses(analyses, json_path=tmp_path / "results.json", npz_path=tmp_path / "spectra.npz")
    return json.loads((tmp_path / "results.json").read_text())


def test_the_schema_is_a_schema_that_describes_every_field():
    schema = results_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    for name, definition in schema["$defs"].items():
        for key, field in definition.get("properties", {}).items():
            described = field.get("description") or schema["$defs"][field["$ref"].rpartition("/")[2]]["description"]
            assert described, f"{name}.{key}"


@pytest.mark.parametrize("count", [1, 2])
def test_saved_results_satisfy_the_schema(slq, tmp_path, count):
    jsonschema.validate(document([slq, exact_analysis(n=200)][:count], tmp_path), results_schema())


@pytest.mark.parametrize("exact_limit", [3000, 0], ids=["exact", "matrix-free"])
def test_an_analysis_of_a_network_satisfies_the_schema_and_makes_a_report(tmp_path, exact_limit):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 6, generator=generator), torch.randint(3, (40,), generator=generator)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    risk = EmpiricalRisk(model, torch.nn.CrossEntropyLoss(), (x, y))
    analysis = analyze(risk, num_eigenvalues=3, num_steps=20, exact_limit=exact_limit, generator=generator)
    assert analysis.full.spectrum.exact is (exact_limit > 0)
    required = problem("net.pt", analysis.full.n) | dict(analysis.problem)
    doc = document([dataclasses.replace(analysis, problem=required)], tmp_path)
    jsonschema.validate(doc, results_schema())
    assert {"lower", "upper"} <= doc["full"]["largest"][0].keys() and "interval95" in doc["full"]["trace"]
    assert "Bulk and edges" in Page(write_report([analysis], tmp_path)).words()


DAMAGES = {
    "no sha256": lambda doc: doc["problem"].pop("sha256"),
    "negative stderr": lambda doc: doc["full"]["trace"].update(stderr=-1.0),
    "residual missing": lambda doc: doc["full"]["largest"][0].pop("residual"),
    "half an interval": lambda doc: doc["full"]["largest"][0].pop("upper"),
    "half a bound": lambda doc: doc["full"].update(others=[1.0]),
    "other version": lambda doc: doc.update(schema_version=3),
    "both forms": lambda doc: doc.update(checkpoints=[]),
    "a layer without trace": lambda doc: doc["layers"]["fc1"].pop("trace"),
    "nested fact": lambda doc: doc["problem"].update(extra={"a": 1}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_results_do_not_satisfy_the_schema(tmp_path, damage):
    doc = document([exact_analysis(n=200)], tmp_path)
    DAMAGES[damage](doc)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(doc, results_schema())


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
