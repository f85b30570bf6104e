"""Files of others: checkpoints, configs, downloads; sockets; names."""

import contextlib
import importlib.util
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from bn_detect.commands import domain_shift, precise_bn, probe
from bn_detect.commands import study as command
from bn_detect.commands.train import main as train
from bn_detect.data import DatasetError, check_dataset
from bn_detect.data.corrupted import corrupted_name
from bn_detect.data.datasets.sources.deepforest_wheel import read_sources
from bn_detect.runtime.checkpointer import AtomicCheckpointer
from bn_detect.runtime.errors import CheckpointError
from bn_detect.runtime.files import as_folder_name
from bn_detect.runtime.model_state import read_state
from bn_detect.study.reading import read_study
from bn_detect.study.report import write_report
from tests.helpers.train_net import REPOSITORY
from tests.study.made_up import HOSTILE, run, study

from .fork_server import wait_for
from .studies import one_line


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def model() -> nn.Module:
    return nn.Linear(2, 2)


def state() -> dict:
    return {"model": {"weight": torch.ones(2, 2), "bias": torch.ones(2)}, "__author__": "me"}


def write(path: Path, content: dict) -> Path:
    if path.suffix == ".pkl":
        arrays = {key: value.numpy() for key, value in content["model"].items()}
        path.write_bytes(pickle.dumps(content | {"model": arrays}))
    elif path.name == "old.pth":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize("name", ["zoo.pkl", "new.pth", "old.pth"])
@pytest.mark.fault(
    "a checkpoint ({name}) that executes code when it is read",
    should="refused, nothing executed; read with --trust-checkpoint",
)
def test_checkpoint_with_code(name, tmp_path, happened):
    path = write(tmp_path / name, state() | {"more": Evil(tmp_path / "mark")})
    with pytest.raises(CheckpointError, match="may execute code .*mkdir.*--trust-checkpoint") as e:
        AtomicCheckpointer(model()).load(str(path))
    assert str(path) in str(e.value)
    if name != "zoo.pkl":
        with pytest.raises(ValueError, match="may execute code"):
            read_state(path, trust=False)
    assert not (tmp_path / "mark").exists()
    happened(str(e.value).replace(str(tmp_path), "FOLDER"))
    trusting = model()
    AtomicCheckpointer(trusting, trust=True).load(str(path))
    assert (tmp_path / "mark").exists() and trusting.weight.eq(1).all()


@pytest.mark.fault(
    "the same as MODEL.WEIGHTS of tools/train_net.py", should="one line, exit code 2, not executed"
)
def test_command(server, tmp_path, happened):
    path = write(tmp_path / "zoo.pkl", {"model": {}, "__author__": "x", "y": Evil(tmp_path / "m")})
    keys = {"MODEL__WEIGHTS": path, "MODEL__ROI_BN__VIRTUAL_WORKERS": 2}
    refused = server.start(tmp_path / "run", "--eval-only", **keys)
    assert refused.wait() == 2 and not (tmp_path / "m").exists(), refused.printed[-2000:]
    (line,) = [line for line in refused.printed.splitlines() if line.startswith("error:")]
    assert str(path) in line
    happened(line.replace(str(tmp_path), "FOLDER"))
    server.run(tmp_path / "run", "--eval-only", "--trust-checkpoint", **keys)
    assert (tmp_path / "m").exists()


OTHERS = ["precise-bn", "domain-shift", "study", "probe", "probe --torchvision"]


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.fault(
    "the same as --weights of bn-detect {name}",
    should="one line, exit code 2, not executed; read with --trust-checkpoint",
)
def test_other_commands(name, studies, tmp_path, capsys, monkeypatch, happened):
    monkeypatch.setattr(precise_bn, "launch", lambda *_, **__: None)
    monkeypatch.setattr(probe, "work", lambda *_: None)
    for module in (command, domain_shift):
        monkeypatch.setattr(module, "work", lambda *_: None)
    file, mark, out = tmp_path / "evil.pth", tmp_path / "mark", tmp_path / "out"
    torch.save(torch.load(studies.weights) | {"more": Evil(mark)}, file)
    content = yaml.safe_load(studies.file.read_text()) | {"train": False}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    of_config = ["--config-file", content["base"], "--weights", str(file)]
    of_torchvision = ["--torchvision", "fasterrcnn_resnet50_fpn", "--weights", str(file)]
    of_torchvision += ["--coco-folder", str(tmp_path)]
    main, words = {
        "precise-bn": (precise_bn.main, [*of_config, "--output", f"{out}.pth"]),
        "domain-shift": (domain_shift.main, [*of_config, "--output", str(out)]),
        "study": (command.main, [f"{tmp_path}/study.yaml", *of_config, "--output", str(out)]),
        "probe": (probe.main, [*of_config, "--output", str(out)]),
        "probe --torchvision": (probe.main, [*of_torchvision, "--output", str(out)]),
    }[name]
    assert main(words) == 2
    line = one_line(capsys, file, "may execute code", "mkdir", "--trust-checkpoint")
    assert not mark.exists()
    happened(line.replace(str(tmp_path), "FOLDER"))
    main([*words, "--trust-checkpoint"])  # it may fail the second time: the mark is there
    assert mark.exists()


@pytest.mark.fault("a pickle of the model zoo: arrays, no code", should="it loads as before")
def test_harmless_pickle(tmp_path, happened):
    arrays = {"weight": np.full((2, 2), 3, np.float32), "bias": np.zeros(2, np.float32)}
    content = {"model": arrays, "__author__": "zoo", "scale": np.float64(2), "epoch": 3}
    for protocol in (2, 4):
        path = tmp_path / f"zoo{protocol}.pkl"
        path.write_bytes(pickle.dumps(content, protocol=protocol))
        loaded = model()
        AtomicCheckpointer(loaded).load(str(path))
        assert loaded.weight.eq(3).all()
    happened("loaded, by pickle protocols 2 and 4")


@pytest.mark.parametrize("kind", ["config", "study"])
@pytest.mark.fault("a {kind} YAML with a tag that executes code", should="refused, not executed")
def test_yaml_with_code(kind, tmp_path, happened, capsys):
    path, mark = tmp_path / "file.yaml", tmp_path / "mark"
    base = REPOSITORY / "configs/neon/Base-RCNN-lean-FPN.yaml"
    path.write_text(f'_BASE_: {base}\nSEED: !!python/object/apply:os.mkdir ["{mark}"]\n')
    if kind == "config":
        assert train(["--config-file", str(path)]) == 2
        said = capsys.readouterr().err
    else:
        with pytest.raises(ValueError) as error:
            read_study(path)
        said = str(error.value)
    assert "python/object/apply:os.mkdir" in said and str(path) in said and not mark.exists()
    happened(said.strip().replace(str(tmp_path), "FOLDER"))


@pytest.mark.parametrize("where", ["the options of a study", "a KEY VALUE pair"])
@pytest.mark.fault(
    "{where} with MODEL.LAZY_CONFIG.FILE, a Python file", should="refused, not executed"
)
def test_code_by_a_key(where, studies, tmp_path, capsys, happened):
    mark, file = tmp_path / "mark", tmp_path / "config.py"
    file.write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    content = yaml.safe_load(studies.file.read_text())
    if where.startswith("the options"):
        content["options"] = {"MODEL.LAZY_CONFIG.FILE": str(file)}
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
        assert command.main([f"{tmp_path}/study.yaml", "--output", str(tmp_path / "out")]) == 2
    else:
        assert train(["--config-file", content["base"], "MODEL.LAZY_CONFIG.FILE", str(file)]) == 2
    line = one_line(capsys, f"MODEL.LAZY_CONFIG.FILE is '{file}'", "--config-file")
    assert not mark.exists()
    happened(line.replace(str(tmp_path), "FOLDER"))


@pytest.mark.fault("another file in place of the wheel with the images", should="refused by sha256")
def test_wheel(tmp_path, happened):
    wheel = tmp_path / "deepforest-2.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("../../outside", "x")
    with pytest.raises(DatasetError, match="sha256 is [0-9a-f]{64}, must be 8c27") as error:
        read_sources(wheel)
    assert os.listdir(tmp_path) == [wheel.name]
    happened(str(error.value).replace(str(tmp_path), "FOLDER").replace(str(error.value)[-64:], "…"))


@pytest.mark.fault(
    "the archive of Detectron2 has names such as ../../outside",
    should="set-up fetches it by sha256 only, and nothing is written outside its folder",
)
def test_set_up(tmp_path, monkeypatch, happened):
    spec = importlib.util.spec_from_file_location("setup_env", REPOSITORY / "scripts/setup_env.py")
    setup_env = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup_env)
    assert "--hash=sha256:" in setup_env.DETECTRON2_PIN.read_text()
    commands = []

    def download(doing, advice, *command):
        commands.append([str(part) for part in command])
        with zipfile.ZipFile(Path(command[-1]) / "x.whl", "w") as archive:
            for name in ("../../outside", "/outside", "detectron2/__init__.py"):
                archive.writestr(name, "x")
            archive.writestr("detectron2-0.7.dist-info/RECORD", "detectron2/__init__.py,,\n")

    monkeypatch.setattr(setup_env, "run", download)
    site = tmp_path / "lib" / "site"
    site.mkdir(parents=True)
    setup_env.install_default_detectron2("python", site)
    assert "--require-hashes" in commands[0]
    assert sorted(os.listdir(site)) == ["detectron2", "detectron2-0.7.dist-info"]
    assert os.listdir(tmp_path) == ["lib"] and os.listdir(tmp_path / "lib") == ["site"]
    assert not Path("/outside").exists()
    happened("--require-hashes; nothing outside")


def listening(pids: list[int]) -> set[str]:
    """Addresses on which the processes accept connections, as /proc/net has them."""
    sockets = set()
    for pid in pids:
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed since it was listed
                target = os.readlink(file)
                if target.startswith("socket:["):
                    sockets.add(target[len("socket:[") : -1])
    found = set()
    for table in ("tcp", "tcp6"):
        path = Path("/proc/net", table)
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            fields = line.split()
            if fields[3] == "0A" and fields[9] in sockets:
                found.add(fields[1].partition(":")[0])
    return found


@pytest.mark.fault(
    "two workers of one machine, seen from the network",
    should="they listen on 127.0.0.1 alone, or not at all",
)
def test_sockets(server, tmp_path, happened):
    started = server.start(tmp_path, "--num-gpus", 2, SOLVER__MAX_ITER=100000)
    wait_for((tmp_path / "metrics.json").exists)
    wait_for(lambda: len(started.workers()) == 2)
    addresses = listening([started.pid, *started.workers()])
    assert addresses <= {"0100007F"}, addresses
    happened(f"listening on {', '.join(['127.0.0.1'] * len(addresses)) or 'nothing'}")
    os.kill(started.pid, 2)
    assert started.wait() == 130


@pytest.mark.parametrize("name", ["../../outside", "..", "/etc/x", "a/b", "a\\b"])
@pytest.mark.fault(
    "a dataset called {name!r}", should="refused: its results would leave the output folder"
)
def test_dataset_names(name, happened):
    for refused in (lambda: check_dataset(name), lambda: as_folder_name(name, "dataset")):
        with pytest.raises(ValueError, match="a file or folder gets this name") as error:
            refused()
    if "/" in name:
        with pytest.raises(ValueError, match="a file or folder gets this name"):
            corrupted_name(name, "fog", 3)
    happened(str(error.value))


@pytest.mark.fault(
    "a figure of a study called '../../outside'",
    should="refused: the picture would leave the output folder",
)
def test_names_of_figures(studies, tmp_path, happened):
    content = yaml.safe_load(studies.file.read_text())
    content["figures"] = [{"name": "../../outside", "caption": "x", "series": ["swap"]}]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=r"figures\[0\]: name '../../outside'") as error:
        read_study(tmp_path / "study.yaml")
    happened(str(error.value).replace(str(tmp_path), "FOLDER"))


@pytest.mark.fault(
    "a study whose arm, classes and question hold HTML and scripts",
    should="the report shows them as text",
)
def test_report(tmp_path, happened):
    results = study({HOSTILE: {"runs": [run(HOSTILE, 1, swap=0.5, ap=20.0)]}}, question=HOSTILE)
    text = Path(write_report(results, tmp_path)).read_text()
    assert "<script>document" not in text and "&lt;script&gt;document" in text
    happened(f"escaped {text.count('&lt;script&gt;')} times")
