"""Make the virtual environment of this clone, or complete it (`make setup`).

usage: setup_env.py VENV [--same-python]; the variable DETECTRON2 may hold a pip requirement

It may be killed at any moment: the next run goes on from there, and does nothing where all is done.
In an environment that it did not make, it adds what is missing and replaces nothing.
"""

import csv
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES, NO_DEPENDENCIES, PINS, DETECTRON2_PIN = (
    ROOT / "requirements" / f"{name}.txt"
    for name in ("packages", "no_dependencies", "pins", "detectron2")
)
AGAIN = "Then type: make setup (what is installed is kept)"
LOCK = open(__file__)  # noqa: SIM115 - a pip that outlives this process holds it too
PIP = ["-m", "pip", "--no-input", "--disable-pip-version-check"]
if not sys.stdout.isatty():
    PIP.append("--quiet")
# What lies in the current folder, which -c puts on sys.path, is not installed.
PROBE = """
import sys; sys.path.pop(0)
import json, sysconfig, importlib.metadata as metadata, importlib.util as util
origins = {n: getattr(util.find_spec(n), "origin", None) for n in ("torch", "detectron2")}
dists = {d.metadata["Name"]: d.version for d in metadata.distributions() if d.metadata["Name"]}
print(json.dumps([sysconfig.get_paths()["purelib"], origins, dists]))
"""


def say(line):
    print(f"set-up: {line}", flush=True)


def fail(line):
    sys.exit(f"set-up FAILED: {line}")


def run(doing, advice, *command):
    say(doing)
    if subprocess.call([str(c) for c in command], pass_fds=[LOCK.fileno()]):
        fail("{} did not work; the reason is above. {}".format(doing.split(" (")[0], advice))


def checked_version(python):
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    version = subprocess.check_output([str(python), "-c", code]).decode().strip()
    if version not in ("3.10", "3.11", "3.12", "3.13", "3.14"):
        advice = "Python 3.10 to 3.14 is needed. Type, say: make setup PYTHON=python3.12"
        fail(f"{python} is Python {version}; {advice}")
    return version


def probe(python):
    site, origins, dists = json.loads(subprocess.check_output([str(python), "-c", PROBE]))
    return Path(site), origins, {re.sub(r"[-_.]+", "-", n).lower(): v for n, v in dists.items()}


def make_venv(venv, made):
    """The file `made` marks an environment as ours; it is empty until `venv` has ended."""
    if venv.exists() and not made.exists() and any(venv.iterdir()):
        fail(f"{venv} holds other things. Name another folder: make setup VENV=...")
    checked_version(sys.executable)
    venv.mkdir(parents=True, exist_ok=True)
    made.touch()
    for child in set(venv.iterdir()) - {made}:  # of a run that was killed
        shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()
    advice = "Debian and Ubuntu need their package python3-venv. Then type: make setup"
    doing = f"making the virtual environment {venv} with {sys.executable}"
    run(doing, advice, sys.executable, "-m", "venv", venv)
    made.write_text("by scripts/setup_env.py\n")


def drop_half_installed(site):
    """What a killed pip left: it writes INSTALLER after the files, and moves old ones to ~*."""
    infos = [path for path in site.glob("*.dist-info") if not (path / "INSTALLER").exists()]
    for path in [*site.glob("~*"), *infos]:
        shutil.rmtree(path)


def constraints_that_keep(installed, path):
    """The pins of what is missing; torchvision has none where torch is another: it must fit."""
    pins = [line for line in PINS.read_text().splitlines() if not line.startswith("#")]
    kept = set(installed)
    if "torch" in kept and f"torch=={installed['torch'].split('+')[0]}" not in pins:
        kept.add("torchvision")
    pins = [pin for pin in pins if pin.split("==")[0] not in kept]
    pins += [f"{name}=={version}" for name, version in installed.items() if name != "bn-detect"]
    path.write_text("\n".join(pins))
    return path


def install_default_detectron2(python, site):
    """Its wheel, less the compiled part (made for another torch) and the stray package `tools`."""
    folder = site / "~detectron2"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    how = ["--no-deps", "--only-binary=:all:", "--python-version=3.10", "--require-hashes"]
    advice = "Check the network and type: make setup; or take another: make setup DETECTRON2=..."
    command = [python, *PIP, "download", *how, "-r", DETECTRON2_PIN, "-d", folder]
    run("downloading Detectron2's pure-Python part (7 MB)", advice, *command)
    unwanted = re.compile(r"tools/|detectron2/_C\.|[^/]*/top_level\.txt$")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder, [n for n in wheel.namelist() if not unwanted.match(n)])
    info = next(folder.glob("*.dist-info"))
    (info / "INSTALLER").write_text("bn_detect\n")
    recorded = csv.reader((info / "RECORD").read_text().splitlines())
    rows = [row for row in recorded if not unwanted.match(row[0])]
    with open(info / "RECORD", "w", newline="") as record:
        csv.writer(record).writerows([*rows, [f"{info.name}/INSTALLER", "", ""]])
    for part in (info, folder / "detectron2"):  # the package last: where it is, it is whole
        shutil.rmtree(site / part.name, ignore_errors=True)
        part.rename(site / part.name)
    shutil.rmtree(folder)


def install_detectron2(python, site, there, installed, ours):
    own = os.environ.get("DETECTRON2", "").strip()
    if own:
        advice = "Then type: make setup DETECTRON2=... (what else is installed is kept)"
        old = sorted({"detectron2", "sal-detectron2"} & set(installed)) if ours else []
        if old:
            command = [python, *PIP, "uninstall", "--yes", *old]
            run(f"removing {' and '.join(old)}", advice, *command)
        how = ["--no-deps", "--no-build-isolation", "--force-reinstall"]
        doing = f"installing Detectron2 from {own} (minutes where it must be compiled)"
        run(doing, advice, python, *PIP, "install", *how, own)
    elif there:
        say(f"Detectron2 is there: {os.path.dirname(there)}")
    else:
        install_default_detectron2(python, site)


def install(venv, python, ours):
    if ours:
        drop_half_installed(probe(python)[0])
    site, origins, installed = probe(python)
    constraints = PINS
    if not ours:
        say(f"{venv} was not made by set-up: what it has is kept, what it lacks is added")
        constraints = constraints_that_keep(installed, venv / ".bn_detect-constraints")
    pip = [python, *PIP, "install", "-c", constraints, "--no-build-isolation"]
    pip.append("--no-warn-conflicts")  # the default Detectron2 names numpy<2, and works with 2
    run("installing what builds packages", AGAIN, *pip, "setuptools", "wheel", "hatchling")
    size = "" if "torch" in installed else " (3 GB to download, 5.5 GB on disk: minutes)"
    doing = f"installing torch, torchvision and what Detectron2 and the tests need{size}"
    run(doing, AGAIN, *pip, "-r", PACKAGES)
    if ours and "imagecorruptions" in installed:  # from before 0.2; the module has the same name
        command = [python, *PIP, "uninstall", "--yes", "imagecorruptions"]
        run("removing imagecorruptions, of 2020", AGAIN, *command)
    if ours or "imagecorruptions" not in installed:
        run("installing imagecorruptions-imaug", AGAIN, *pip, "--no-deps", "-r", NO_DEPENDENCIES)
    # In ours, files without metadata were left by a pip that was killed.
    whole = not ours or {"detectron2", "sal-detectron2"} & set(installed)
    install_detectron2(python, site, whole and origins["detectron2"], installed, ours)
    shutil.rmtree(ROOT / "bn_detect.egg-info", ignore_errors=True)  # of set-ups before 0.2
    run("installing bn_detect in editable mode", AGAIN, *pip, "--no-deps", "-e", ROOT)
    code = "import torchvision, detectron2.modeling, detectron2.engine"
    advice = f"torch, torchvision and Detectron2 must fit each other. {AGAIN}"
    run("checking that Detectron2 works", advice, python, "-W", "ignore", "-c", code)


def main():
    venv = Path(sys.argv[1]).expanduser().absolute()
    python, made, done = venv / "bin" / "python", venv / ".bn_detect-made", venv / ".bn_detect-done"
    try:
        fcntl.flock(LOCK, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("waiting for another set-up of this clone")
        fcntl.flock(LOCK, fcntl.LOCK_EX)
    requirements = [PACKAGES, NO_DEPENDENCIES, PINS, DETECTRON2_PIN]
    files = [Path(__file__), *requirements, ROOT / "pyproject.toml"]
    parts = [*(f.read_bytes() for f in files), f"{os.environ.get('DETECTRON2')} {ROOT}".encode()]
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()
    stamp = done.read_text().splitlines() if done.exists() else []
    if not python.exists() or (made.exists() and not made.read_text()):
        make_venv(venv, made)
    elif not stamp or "--same-python" in sys.argv:
        has = checked_version(python)
        if "--same-python" in sys.argv and has != checked_version(sys.executable):
            fail(f"{venv} has Python {has}. For another, type: make clean; or name another VENV=")
    if stamp[:1] != [key] or not all(os.path.exists(path) for path in stamp[1:]):
        # Not in /tmp, which may be too small, and where a killed pip leaves gigabytes.
        temporary = venv / ".bn_detect-tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        os.environ["TMPDIR"] = str(temporary)
        install(venv, python, made.exists())
        shutil.rmtree(temporary)
        done.write_text("\n".join([key, *probe(python)[1].values()]))
    say(f"{venv} is complete (for commands of your own: . {venv}/bin/activate)")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        fail("interrupted. To go on, type: make setup")
