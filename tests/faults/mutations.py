"""Trees of JSON and YAML with one thing spoilt, the same for the same seed."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

import yaml

Tree = Any

VALUES = {
    "wrong type": ["text", 7, 1.5, True, [], {}, [[]], ["a"], {"a": 1}],
    "nothing": [None],
    "negative": [-1, -7.5],
    "zero": [0],
    "NaN": [float("nan"), float("inf"), float("-inf")],
    "huge": [10**12, 10**30, 1e308],
    "unicode": ["naïve 木 \U0001f333", "\u202eevil", "a\nb", ""],
}
UNTOUCHED = "nothing was done"
KINDS = (*VALUES, "drop", "duplicate", "unknown key", "text")


def mutants(tree: Tree, kind: str, count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """What was done, and the file; first `UNTOUCHED`. kind: "json" or "yaml"."""
    rng = random.Random(seed)
    yield UNTOUCHED, dump(tree, kind)
    for _ in range(count):
        mutation = rng.choice(KINDS)
        if mutation == "text":
            yield _spoilt_text(dump(tree, kind), rng)
        else:
            spoilt = copy.deepcopy(tree)
            said = _spoil(spoilt, mutation, rng)
            yield said, dump(spoilt, kind)


def dump(tree: Tree, kind: str) -> bytes:
    if kind == "json":
        return json.dumps(tree).encode()
    return yaml.safe_dump(tree, allow_unicode=True, sort_keys=False).encode()


def places(tree: Tree, path: tuple = ()) -> Iterator[tuple[Tree, Any, tuple]]:
    """(container, key or index, path) of everything in the tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield tree, key, (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def _spoil(tree: Tree, mutation: str, rng: random.Random) -> str:
    every = list(places(tree))
    # Not mostly numbers of the longest list.
    depth = rng.choice(sorted({len(path) for *_, path in every}))
    container, key, path = rng.choice([p for p in every if len(p[2]) == depth])
    where = ".".join(map(str, path))
    if mutation == "drop":
        del container[key]
    elif mutation == "duplicate" and isinstance(container, list):
        container.insert(key, copy.deepcopy(container[key]))
    elif mutation == "unknown key" and isinstance(container, dict):
        container[f"{key}_"] = container[key]
    elif mutation in VALUES:
        value = copy.deepcopy(rng.choice(VALUES[mutation]))
        container[key] = value
        return f"{where} = {value!r}"
    else:
        other = rng.choice(every)
        container[key] = copy.deepcopy(other[0][other[1]])
        return f"{where} = a copy of {'.'.join(map(str, other[2]))}"
    return f"{mutation} {where}"


def _spoilt_text(text: bytes, rng: random.Random) -> tuple[str, bytes]:
    place = rng.randrange(len(text))
    return rng.choice(
        [
            ("empty file", b""),
            (f"cut off at {place}", text[:place]),
            (f"a byte at {place}", text[:place] + bytes([rng.randrange(256)]) + text[place + 1 :]),
            ("binary", bytes(rng.randrange(256) for _ in range(99))),
            ("a list", b"[1, 2]"),
            ("a number", b"3"),
            ("not UTF-8", b"\xff\xfe" + text),
            ("deeply nested", b"[" * 5000),
        ]
    )
