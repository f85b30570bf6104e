"""The package as a stranger gets it: a wheel, with what it declares and nothing else beside it.

The virtual environments of these tests hold the wheel and links to the packages of the environment
that runs the tests: those that the wheel declares, and what these need. Nothing is downloaded, the
clone is not on the path, and an import that is not declared fails.
"""

import ast
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections import defaultdict
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import bn_detect

REPOSITORY = Path(__file__).parents[1]
CORE = ("layers", "distributed", "population", "probes", "reporting")  # work without Detectron2
MODULES = {  # distribution -> module, where the names differ
    "imagecorruptions-imaug": "imagecorruptions",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-image": "skimage",
    "scikit-learn": "sklearn",
}
SUPPLIED = {"detectron2", "triton"}  # Detectron2 has no release; triton comes with torch


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The folder with the wheel and the sdist of this clone."""
    folder = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "hatchling", "build", "-d", folder, cwd=REPOSITORY)
    return folder


@pytest.fixture(scope="module")
def wheel(built) -> Path:
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def declared(wheel) -> dict[str, set[str]]:
    """Maps each extra ("" for none) to the distributions that the wheel itself declares for it."""
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(_named(archive.namelist(), "METADATA")).decode()
    groups: dict[str, set[str]] = defaultdict(set)
    for line in re.findall("^Requires-Dist: (.*)$", text, flags=re.MULTILINE):
        requirement = Requirement(line)
        extra = re.search(r"extra == ['\"](\w+)", str(requirement.marker))
        groups[extra[1] if extra else ""].add(canonicalize_name(requirement.name))
    return groups


@pytest.fixture(scope="module")
def installed(wheel, declared, tmp_path_factory):
    """Return a function that makes an environment with the wheel and some of its extras."""

    def install(*extras: str, also: tuple[str, ...] = ()) -> Path:
        venv = tmp_path_factory.mktemp("venv")
        _run(sys.executable, "-m", "venv", "--without-pip", venv)
        pip = ["-m", "pip", "--python", venv, "install", "--quiet", "--no-deps", "--no-index"]
        _run(sys.executable, *pip, wheel)
        (site,) = venv.glob("lib/python*/site-packages")
        names = {*declared[""], *(name for extra in extras for name in declared[extra])}
        _link(_closure(names), site)
        for module in also:
            (site / module).symlink_to(Path(__import__(module).__file__).parent)
        return venv / "bin"

    return install


def test_the_wheel_holds_the_package_its_configs_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    version = metadata_version(names)
    tops = {"bn_detect", "bn_detect_command.py", f"bn_detect-{version}.dist-info"}
    assert {name.split("/")[0] for name in names} == tops
    for folder, inside in (("bn_detect", "bn_detect"), ("configs", "bn_detect/configs")):
        files = {
            f"{inside}/{path.relative_to(REPOSITORY / folder)}"
            for path in (REPOSITORY / folder).rglob("*")
            if path.is_file() and path.suffix != ".pyc"
        }
        assert files - names == set()
    assert "bn_detect/py.typed" in names and _named(names, "licenses/LICENSE")


def test_the_sdist_makes_the_same_wheel(built, wheel, tmp_path):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    for name in ("LICENSE", "README.md", "CITATION.cff", "CHANGELOG.md", "tests/test_package.py"):
        assert (folder / name).is_file(), name
    _run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path, cwd=folder)
    (again,) = tmp_path.glob("*.whl")
    contents = [
        {name: archive.read(name) for name in archive.namelist()}
        for archive in map(zipfile.ZipFile, (wheel, again))
    ]
    assert contents[0] == contents[1]


def test_one_version_everywhere(wheel):
    citation = (REPOSITORY / "CITATION.cff").read_text()
    version = metadata_version(zipfile.ZipFile(wheel).namelist())
    assert version == bn_detect.__version__
    assert re.findall("^version: (.+)$", citation, flags=re.MULTILINE) == [version]


def test_what_is_declared_is_what_is_imported(declared):
    core, whole = _imported(*CORE), _imported("")
    everything = set().union(*(_modules(names) for names in declared.values()))
    assert whole - SUPPLIED - everything == set(), "imported, but not declared"
    assert core - SUPPLIED - {"torchvision"} == _modules(declared[""])
    for extra in ("study", "corruptions", "slurm"):
        own = _modules(declared[extra]) - _modules(declared["detectron2"])
        assert own - whole == set(), f"{extra}: declared, but not imported"


def test_layers_and_probes_need_what_is_declared_and_no_more(installed, tmp_path):
    python = installed() / "python"
    code = """
import importlib.util, torch, bn_detect
import bn_detect.probes
assert importlib.util.find_spec("detectron2") is None
norm = bn_detect.RoIBatchNorm2d(4)
report = bn_detect.update_population_stats(norm, [torch.randn(8, 4, 3, 3)] * 2, 2, progress=False)
assert report.layers[0].updated and str(report)
"""
    _run(python, "-W", "ignore", "-c", code, cwd=tmp_path)
    script = python.with_name("bn-detect")
    assert "study" in _run(script, "--help")
    needs = subprocess.run([script, "train"], cwd=tmp_path, capture_output=True, text=True)
    assert needs.returncode == 2 and "needs Detectron2" in needs.stderr


@pytest.fixture(scope="module")
def full(installed) -> Path:
    return installed("detectron2", "study", also=("detectron2",))


def test_every_module_imports_without_the_model_zoo(full, tmp_path):
    """Detectron2's model zoo needs pkg_resources, which setuptools 82 dropped."""
    code = """
import importlib, pkgutil, sys, bn_detect
for module in pkgutil.walk_packages(bn_detect.__path__, "bn_detect."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
assert "detectron2.model_zoo" not in sys.modules
print(bn_detect.__file__)
"""
    printed = _run(full / "python", "-W", "ignore", "-c", code, cwd=tmp_path)
    assert str(full.parent) in printed


STUDY = """
name: tiny
base: leaky-shapes/faster_rcnn_small.yaml
datasets:
  leaky_shapes: {images: 12, val_images: 16}
options: {SOLVER.MAX_ITER: 2, SOLVER.STEPS: [], SOLVER.WARMUP_ITERS: 1}
measure: [companion_swap]
arms:
  - {name: worker, options: {MODEL.ROI_BN.BATCH: worker, MODEL.ROI_BN.VIRTUAL_WORKERS: 8}}
"""


def test_a_study_runs_from_the_wheel(full, tmp_path):
    (tmp_path / "mine.yaml").write_text(STUDY)
    script = full / "bn-detect"
    assert "SyncBN" in _run(script, "study", "studies/demo.yaml", "--dry-run", cwd=tmp_path)
    printed = _run(script, "study", "mine.yaml", cwd=tmp_path)
    output = tmp_path / "output" / "studies" / "mine"
    assert str(output.relative_to(tmp_path)) in printed
    results = json.loads((output / "results.json").read_text())
    assert results["study"]["name"] == "tiny" and (output / "report.html").is_file()


def metadata_version(names) -> str:
    return re.search(r"-(.+)\.dist-info", _named(names, "METADATA"))[1]


def _named(names, end: str) -> str:
    (name,) = (name for name in names if name.endswith(end))
    return name


def _run(*command: object, cwd: Path | None = None, **environment: object) -> str:
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    process = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=variables | {key: str(value) for key, value in environment.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stdout[-4000:]
    return process.stdout


def _closure(names: set[str]) -> set[str]:
    """Distributions and, as far as they are installed here, what they need in turn."""
    found: set[str] = set()
    waiting = set(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        found.add(name)
        try:
            needs = map(Requirement, metadata.requires(name) or ())
        except metadata.PackageNotFoundError:
            assert name not in names, f"{name} is declared and not installed here"
            continue
        here = {"extra": ""}
        waiting |= {need.name for need in needs if not need.marker or need.marker.evaluate(here)}
    return found


def _link(names: set[str], site: Path) -> None:
    """Put links to what the distributions installed here into another environment."""
    for distribution in metadata.distributions():
        if canonicalize_name(distribution.metadata["Name"] or "") in names:
            for top in {Path(file).parts[0] for file in distribution.files or ()}:
                link = site / top
                if top not in ("..", "__pycache__") and not link.exists():
                    link.symlink_to(Path(distribution.locate_file(top)))


def _modules(names: set[str]) -> set[str]:
    modules = {MODULES.get(name, name.replace("-", "_")) for name in names}
    return modules - {None, "bn_detect"}


def _imported(*rooms: str) -> set[str]:
    """Top-level modules from elsewhere that some rooms of the package import ("": all)."""
    found = set()
    for room in rooms:
        for file in (REPOSITORY / "bn_detect" / room).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Import):
                    found |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    found.add(str(node.module))
    return {name.split(".")[0] for name in found} - {*sys.stdlib_module_names, "bn_detect"}
