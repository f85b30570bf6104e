"""Spoilt datasets, studies and configs: a clear error before training, or a correct run."""

import argparse
import contextlib
import json
import shutil
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

from bn_detect.commands import study as study_command
from bn_detect.commands import train as train_command
from bn_detect.data import BNDatasetMapper, check_dataset
from bn_detect.engine import BNTrainer
from tests.data.small_dataset import small_dataset
from tests.helpers.in_process import config
from tests.helpers.train_net import REPOSITORY

from .mutations import UNTOUCHED, mutants

SECONDS = 30  # for one


@contextlib.contextmanager
def no_hang() -> Iterator[None]:
    def late(*_) -> None:
        raise TimeoutError(f"it hung for {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def judged(
    files: Iterator[tuple[str, bytes]],
    path: Path,
    check: Callable[[], None],
    use: Callable[[], str | None],
) -> str:
    """Try every file in the place of `path`; a summary.

    Args:
        check: what is done before training; ValueError with one line is what a user may see.
        use: of a file that passed; what is wrong, or None.
    """
    counts, wrong = Counter(), []
    for number, (said, content) in enumerate(files):
        path.write_bytes(content)
        try:
            with no_hang():
                check()
        except ValueError as error:
            message = str(error)
            counts["refused"] += 1
            if said == UNTOUCHED or len(message) < 15 or "\n" in message.strip():
                wrong.append(f"{number}: {said}: refused, or unclear: {message!r:.300}")
            continue
        except BaseException:  # noqa: BLE001 - whatever it is, a user must not see it
            wrong.append(f"{number}: {said}: {_end(traceback.format_exc())}")
            continue
        try:
            with no_hang():
                fault = use()
        except BaseException:  # noqa: BLE001
            fault = _end(traceback.format_exc())
        counts["correct runs"] += 1
        if fault is not None:
            wrong.append(f"{number}: {said}: passed the check, but {fault}")
    assert not wrong, f"{len(wrong)} of {sum(counts.values())}:\n" + "\n".join(wrong[:40])
    return f"{counts['refused']} refused in one line, {counts['correct runs']} correct runs"


def _end(text: str) -> str:
    lines = text.strip().splitlines()
    return " / ".join(line.strip() for line in lines[-7:])[-500:]


@pytest.mark.fault(
    "a COCO JSON with one thing spoilt: keys, types, boxes, ids, categories, text",
    should="refused in one line by the check before training; else every box of it is trained on",
)
@pytest.mark.timeout(900)
def test_coco(tmp_path, size, happened):
    coco = small_dataset(tmp_path)
    path, name = tmp_path / "spoilt.json", "spoilt_coco"

    def check() -> None:
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        register_coco_instances(name, {}, str(path), str(tmp_path / "images"))
        check_dataset(name)

    def use() -> str | None:
        written = json.loads(path.read_bytes())
        dicts = DatasetCatalog.get(name)
        if len(dicts) != len(written["images"]):
            return f"{len(written['images'])} images became {len(dicts)}"
        mapper = BNDatasetMapper(cfg, True)
        for d in dicts:
            listed = [a for a in written["annotations"] if a["image_id"] == d["image_id"]]
            wanted = sum(not a.get("iscrowd", 0) for a in listed)
            mapped = mapper(d)
            if len(mapped["instances"]) != wanted:
                return f"{wanted} boxes became {len(mapped['instances'])}"
            if not mapped["instances"].gt_boxes.tensor.isfinite().all():
                return "a box is not finite"
        return None

    cfg = train_command.read_config(
        argparse.Namespace(
            config_file=str(REPOSITORY / "configs/neon/Base-RCNN-lean-FPN.yaml"), opts=[]
        )
    )
    happened(judged(mutants(coco, "json", size(60, 500)), path, check, use))


@pytest.mark.fault(
    "a config YAML with one thing spoilt: keys, types, numbers, text",
    should="refused in one line before training; else a step of training gives a finite loss",
)
@pytest.mark.timeout(900)
def test_config(server, tmp_path, size, happened):
    base = config(server.root, tmp_path / "out")
    base.SOLVER.CHECKPOINT_PERIOD, base.DATASETS.TEST = 5000, ()
    file = REPOSITORY / "configs/neon/Base-RCNN-lean-FPN.yaml"
    tree = yaml.safe_load(file.read_text())
    for section, key in [(tree["MODEL"], "ROI_HEADS"), (tree, "SOLVER"), (tree, "INPUT")]:
        section[key] = yaml.safe_load(_section(base, section is tree, key))
    tree["DATASETS"] = {"TRAIN": list(base.DATASETS.TRAIN), "TEST": []}
    tree["OUTPUT_DIR"] = str(tmp_path / "out")
    path = tmp_path / "spoilt.yaml"
    args = train_command.parse_arguments(["--config-file", str(path)])
    found: list = []

    def check() -> None:
        found[:] = [train_command.read_config(args)]
        train_command.check(found[0], args, 1)

    def use() -> str | None:
        cfg = found[0].clone()
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = min(cfg.DATALOADER.NUM_WORKERS, 1)
        cfg.OUTPUT_DIR = str(tmp_path / "out")
        Path(cfg.OUTPUT_DIR).mkdir(exist_ok=True)
        seed_all_rng(1)
        trainer = BNTrainer(cfg)
        losses: list = []
        trainer._trainer._write_metrics = lambda found, *_: losses.append(found)
        with EventStorage():
            trainer._trainer.run_step()
        total = sum(losses[0].values())
        return None if total.isfinite() else f"the loss is {total}"

    happened(judged(mutants(tree, "yaml", size(40, 500)), path, check, use))


def _section(base, top: bool, key: str) -> str:
    node = base[key] if top else base.MODEL[key]
    return node.dump()


@pytest.mark.fault(
    "a study YAML with one thing spoilt: keys, types, numbers, names, text",
    should="refused in one line before anything runs; else all arms and seeds of it are planned",
)
@pytest.mark.timeout(900)
def test_study(tmp_path, size, happened):
    path = tmp_path / "spoilt.yaml"
    for name in ("leaky-shapes", "neon"):
        shutil.copytree(REPOSITORY / "configs" / name, tmp_path / "configs" / name)
    tree = yaml.safe_load((REPOSITORY / "configs/studies/demo.yaml").read_text())
    tree["base"] = "configs/leaky-shapes/faster_rcnn_small.yaml"
    tree["arms"].append({"name": "again", "inference_of": "SyncBN", "reference": {"AP": 1.5}})
    tree["options"] = {"SOLVER.BASE_LR": 0.001, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16}
    tree["measure"] = ["evaluation", "companion_swap"]
    output = tmp_path / "out"
    args = study_command.argument_parser().parse_args(
        ["--study", str(path), "--output", str(output)]
    )
    found: list = []

    def check() -> None:
        found[:] = study_command.check(args)

    def use() -> str | None:
        (planned,) = found
        written = yaml.safe_load(path.read_bytes())
        runs = planned.runs
        if len(planned.study.arms) != len(written["arms"]):
            return "arms were lost"
        wanted = len(written["arms"]) * (written.get("seeds") or 1)
        if len(runs) != wanted:
            return f"{wanted} runs became {len(runs)}"
        folders = {run.folder for run in runs}
        if len(folders) != wanted or not all(f.is_relative_to(output / "runs") for f in folders):
            return "folders"
        return None

    happened(judged(mutants(tree, "yaml", size(10, 500)), path, check, use))
