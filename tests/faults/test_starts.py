"""How commands start: their first lines, what they import, without a clone."""

import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from bn_detect.commands.main import SUBCOMMANDS
from tests.helpers.train_net import REPOSITORY

from .test_commands import CONFIG, run, study_of


@pytest.mark.parametrize("module", ["bn_detect", *(m for m, _ in SUBCOMMANDS.values())])
@pytest.mark.fault(
    "python -m bn_detect, or of the module of a subcommand ({module}), with a mistake or nothing",
    should="one line or the usage, exit code 2",
)
def test_as_modules(module, happened):
    name = module if module == "bn_detect" else f"bn_detect.commands.{module}"
    words = ["--config-file", "nowhere.yaml"] if module == "train" else ["--no-such-option"]
    if module == "bn_detect":
        words = ["trian"]
    done = run("-m", name, *words)
    assert done.returncode == 2, done.stderr[-2000:]
    assert "Traceback" not in done.stderr and "rror: " in done.stderr
    happened(done.stderr.strip().splitlines()[-1])


@pytest.mark.fault(
    "a config file that is not there",
    should="its line is the first, and the only one, within 5 s",
)
def test_first_line(happened):
    since = time.monotonic()
    done = run("tools/train_net.py", "--config-file", "nowhere.yaml")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and "nowhere.yaml" in done.stderr
    assert done.stderr.count("\n") == 1
    happened(f"after {time.monotonic() - since:.1f} s: {done.stderr.strip()}")


@pytest.mark.fault(
    "bn-detect train or study with a mistake, on a machine that imports slowly",
    should="nothing is imported that only drawing, fitting or corrupting needs",
)
def test_imports(happened):
    program = (
        "import sys\nfrom bn_detect.commands.main import main\n"
        "assert main(['train', '--config-file', 'nowhere.yaml']) == 2\n"
        "assert main(['study', 'nowhere.yaml']) == 2\n"
        "print(*{'matplotlib', 'scipy', 'sklearn', 'skimage', 'numba', 'imagecorruptions',"
        "'submitit'} & sys.modules.keys())\n"
    )
    done = run("-c", program)
    assert done.returncode == 0 and done.stdout.strip() == "", done.stdout + done.stderr
    assert all(line.startswith("error: ") for line in done.stderr.splitlines())
    happened("neither matplotlib, SciPy and scikit-learn nor the like is imported")


@pytest.mark.fault(
    "bn-detect --help on a machine that imports slowly",
    should="neither torch nor Detectron2 needed",
)
def test_help_imports_nothing(happened):
    program = (
        "import sys\nsys.argv = ['bn-detect', '--help']\nimport bn_detect_command\n"
        "assert bn_detect_command.main() == 0\n"
        "assert not {'torch', 'detectron2', 'numpy'} & sys.modules.keys()\n"
    )
    done = run("-c", program)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in SUBCOMMANDS)
    happened("neither is imported")


@pytest.mark.fault(
    "a study is planned, and nothing is wrong", should="no warning of others on its stderr"
)
def test_no_foreign_warnings(tmp_path, happened):
    done = run("-m", "bn_detect", "study", *study_of(Path(CONFIG), tmp_path), "out", "--dry-run")
    assert done.returncode == 0 and done.stdout.startswith("arm "), done.stderr
    assert done.stderr == ""
    happened("stderr is empty")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.fault(
    "bn-detect train with {workers} worker(s) starts, and nothing is wrong",
    should="our own line is the first; no warning of others before the first iteration",
)
def test_no_foreign_warnings_in_training(workers, server, tmp_path, happened):
    flags = ("--num-gpus", workers)
    words = server.command.arguments(tmp_path / "out", *flags, SOLVER__MAX_ITER=1)
    environment = {k: v for k, v in server.command.environment.items() if k != "PYTHONWARNINGS"}
    since = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "bn_detect", "train", *words],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    first = process.stdout.readline()
    seconds = time.monotonic() - since
    start, begun, rest = process.communicate(timeout=300)[0].partition("Starting training from")
    assert process.returncode == 0, rest[-2000:]
    assert "bn_detect" in first and begun, first + start
    assert re.findall(r"^.*(?:Warning:|\bW\d{4} ).*$", first + start, re.MULTILINE) == []
    happened(f"the first line after {seconds:.1f} s; no warning before the first iteration")


@pytest.mark.fault(
    "bn-detect train, installed from a wheel, without a clone, beside another tools/train_net.py",
    should="it trains; the other file is not run",
)
def test_from_a_wheel(server, tmp_path, happened):
    site, elsewhere = tmp_path / "site-packages", tmp_path / "elsewhere"
    build = ["-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path]
    done = run(*map(str, build))
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    (site / "tools").mkdir()
    (site / "tools/train_net.py").write_text("raise SystemExit('the wrong one')")
    elsewhere.mkdir()
    words = server.command.arguments(elsewhere / "out", SOLVER__MAX_ITER=1)
    words[words.index("--config-file") + 1] = "neon/Base-RCNN-lean-FPN.yaml"
    done = subprocess.run(
        [sys.executable, "-m", "bn_detect_command", "train", *words],
        cwd=elsewhere,
        env=server.command.environment | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (elsewhere / "out/model_final.pth").exists()
    assert str(REPOSITORY / "bn_detect") not in done.stdout + done.stderr
    happened("trained, with the config that is in the wheel")
