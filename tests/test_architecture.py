"""The shape of the package: arrows point one way, files and folders stay small."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "bn_detect"
FILES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((REPOSITORY / "tests").rglob("*.py"))

# Each folder may import those of the lines above it, and of its own line only itself.
STOREYS = (
    ("distributed", "reporting", "needs_detectron2"),
    ("layers",),
    ("population", "modeling", "runtime"),
    ("data", "probes"),
    ("configuration",),
    ("engine",),
    ("study", "benchmarks"),
    ("commands",),
)
ALSO = {  # within a storey, or upwards: folder -> what it may import besides, and why
    "modeling": {"configuration"},  # the keys that heads read in from_config
    "data": {"runtime"},  # files that are whole or not there
    "probes": {"population", "data"},  # the Detectron2 adapter reads registered datasets
}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path, *, top_level: bool = False) -> set[Path]:
    """The files of the package that a file imports; at its top level only, or anywhere in it."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level else ast.walk(tree)
    results = set()
    for node in nodes:
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            folder = path.parents[node.level - 1]
        elif (node.module or "").startswith("bn_detect"):
            folder = REPOSITORY
        else:
            continue
        target = folder.joinpath(*(node.module or "").split("."))
        for name in node.names:
            for candidate in (
                target / f"{name.name}.py",
                target / name.name / "__init__.py",
                target.with_suffix(".py"),
                target / "__init__.py",
            ):
                if candidate.is_file():
                    results.add(candidate)
                    break
    return results - {path}


def test_arrows_point_one_way():
    storey = {name: number for number, names in enumerate(STOREYS) for name in names}
    wrong = [
        (str(path.relative_to(PACKAGE)), str(target.relative_to(PACKAGE)))
        for path in FILES
        for target in imported(path)
        if (here := room(path)) not in ("__init__", "__main__")  # they offer all that is here
        and (there := room(target)) not in (here, "__init__", *ALSO.get(here, ()))
        and storey[there] >= storey[here]
    ]
    assert wrong == []


def test_there_are_no_circles():
    def files(path: Path) -> set[Path]:
        # A package's __init__ gathers what its modules offer; they may import one another's files.
        return {p for p in imported(path, top_level=True) if p.name != "__init__.py"}

    graph = {path: files(path) for path in FILES if path.name != "__init__.py"}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(graph)


def test_files_and_folders_are_small():
    assert [path for path in FILES + TESTS if len(path.read_text().splitlines()) > 300] == []
    folders = {path.parent for path in FILES}
    assert [folder for folder in folders if len(list(folder.glob("*.py"))) > 15] == []


def test_the_picture_shows_every_folder():
    text = (REPOSITORY / "docs/architecture.md").read_text()
    for folder in {path.parent.relative_to(PACKAGE) for path in FILES}:
        assert f"{folder.name}/" in text or folder == Path(), folder
