"""The published schema of results.json, and what of a file does not fit it."""

import json
from pathlib import Path

import pytest

import bn_detect.study.results

SCHEMA = Path(bn_detect.study.results.__file__).with_name("templates") / "results.schema.json"


def misfits(results: dict) -> list[str]:
    """Place and cause of each value that the schema does not allow."""
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    validator.check_schema(validator.schema)
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(results)]
