"""Columns look numbers up, and know what was not measured."""

from bn_detect.reporting.columns import Column, at

SWAP = Column("swap", "swap (nats)", 3, at("classification", "change"))
NOTHING = {"mean": None, "low": None, "high": None}


def test_numbers_and_intervals():
    runs = [{"classification": {"change": {"mean": 0.5, "low": 0.4, "high": 0.6}}}, {}]
    assert SWAP.number(runs[0]) == 0.5 and SWAP.number(runs[1]) is None
    assert SWAP.estimate(runs).text(1) == "0.5 [0.4, 0.6]"
    plain = Column("error", "error", 1, at("error"))
    assert plain.estimate([{"error": 3}, {"error": float("nan")}, {}]).values == (3.0,)


def test_the_header_names_the_unit():
    assert SWAP.unit == "nats" and Column("error", "error", 1, at("error")).unit == ""


def test_an_interval_of_nothing_is_not_measured():
    run = {"classification": {"change": NOTHING}}
    assert SWAP.number(run) is None and SWAP.estimate([run]) is None
    assert at("a", "b")({"a": 5}) is None
