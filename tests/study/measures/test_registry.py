"""Every column of every measure says its unit, and in a sentence what it means."""

from bn_detect.study.measures.registry import MEASURES


def test_columns_name_their_unit_and_meaning():
    columns = [c for m in MEASURES.values() for c in m.all_columns(m.options)]
    assert len({column.key for column in columns}) == len(columns) > 40
    for column in columns:
        assert column.unit in ("nats", "bits", "%", "share"), column.header
        assert column.meaning.endswith(".") and len(column.meaning) > 25, column.key


def test_no_picture_takes_the_place_of_another():
    names = [picture.name for measure in MEASURES.values() for picture in measure.figures]
    assert len({*names}) == len(names) > 8
