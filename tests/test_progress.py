"""Progress where there is no terminal: a line a minute, with the time left."""

from __future__ import annotations

from pyhessian_spectra.cli import request


def test_without_a_terminal_a_line_a_minute_says_how_much_time_is_left(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(request.time, "monotonic", lambda: now[0])
    with request.progress_bar("a.pt", "product") as advance:
        for done in range(1, 13):  # ten seconds each
            now[0] += 10
            advance(done, 18, f"a.pt, block {done}")
    assert capsys.readouterr().err.splitlines() == [
        "a.pt, block 6: 6 of 18 products, about 2 min 0 s left",
        "a.pt, block 12: 12 of 18 products, about 1 min 0 s left",
    ]


def test_nothing_is_printed_of_what_takes_less_than_a_minute(capsys):
    with request.progress_bar("a.pt", "product") as advance:
        advance(1, 2)
    assert capsys.readouterr().err == ""
