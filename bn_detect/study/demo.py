"""The demo: one detector under two normalization batches on real images, one table, pictures."""

import json
import subprocess
import sys
import time
from pathlib import Path

from detectron2.data import DatasetCatalog
from tabulate import tabulate
from tqdm import tqdm

from ..commands.train import argument_parser
from ..configuration.reading import read_config
from ..runtime.files import write_atomically, write_json
from .metrics import latest
from .pictures import draw_detections

REPOSITORY = Path(__file__).parents[2]
ARMS = ("worker", "shuffled")


def run_demo(output: Path, arms: tuple[str, ...] = ARMS, options: tuple[str, ...] = ()) -> str:
    """Train every arm with two CPU workers, or take it up where it was, and return the table.

    Args:
        output: each arm gets a folder here; a finished arm is not trained again.
        options: KEY VALUE pairs for every arm.

    Raises:
        RuntimeError: a training run failed; the message names its log.
        ValueError: a folder holds a run with other settings.
    """
    rows = []
    for arm in arms:
        folder = output / arm
        result = _train(arm, folder, options)
        picture = draw_detections(
            DatasetCatalog.get("neon_trees_val"),
            folder / "inference" / "neon_trees_val" / "coco_instances_results.json",
            output / f"detections_{arm}.png",
        )
        rows.append([arm, *result.values(), picture])
    table = tabulate(
        rows,
        headers=["batch", "iterations", "seconds", "box AP", "AP50", "detections beside truth"],
        floatfmt=(None, None, ".0f", ".1f", ".1f"),
        tablefmt="github",
    )
    write_atomically(output / "table.md", lambda file: file.write(f"{table}\n".encode()))
    return table


def _train(arm: str, folder: Path, options: tuple[str, ...]) -> dict[str, float]:
    """One training run as a process of its own, as a user would start it."""
    config = REPOSITORY / "configs" / "neon" / f"faster_rcnn_lean_FPN_{arm}.yaml"
    overrides = ["OUTPUT_DIR", str(folder), *options]
    command = [str(REPOSITORY / "tools" / "train_net.py"), "--config-file", str(config)]
    command += ["--num-gpus", "2", "--resume", *overrides]
    cfg = read_config(argument_parser().parse_args(command[1:]))
    summary, used = folder / "demo.json", folder / "config.yaml"
    if used.exists() and used.read_text() != cfg.dump():
        raise ValueError(f"{folder} holds a run with other settings; delete it, or use --output")
    if summary.exists():
        print(f"{arm}: already trained (delete {folder} to train it again)")
        return json.loads(summary.read_text())

    folder.mkdir(parents=True, exist_ok=True)
    print(f"{arm}: $ tools/train_net.py {' '.join(command[1:])}")
    log, begin = folder / "train.log", time.monotonic()
    with open(log, "w") as file:
        process = subprocess.Popen(
            [sys.executable, *command], stdout=file, stderr=subprocess.STDOUT, cwd=REPOSITORY
        )
        try:
            _show_progress(process, folder / "metrics.json", cfg.SOLVER.MAX_ITER)
        finally:
            process.terminate()  # a no-op when it has ended
            process.wait()
    if process.returncode:
        raise RuntimeError(f"training under {arm!r} failed; its log is {log}")
    box = json.loads((folder / "results.json").read_text())["bbox"]
    result = {
        "iterations": cfg.SOLVER.MAX_ITER,
        "seconds": time.monotonic() - begin,
        "AP": box["AP"],
        "AP50": box["AP50"],
    }
    write_json(summary, result)
    return result


def _show_progress(process: subprocess.Popen, metrics: Path, iterations: int) -> None:
    """A bar with an ETA until the process ends, from the metrics that Detectron2 writes."""
    with tqdm(total=iterations, unit="it") as bar:
        while process.poll() is None:
            time.sleep(1.0)
            if done := latest(metrics):
                bar.set_postfix_str(f"loss {done['total_loss']:.2f}", refresh=False)
                bar.update(done["iteration"] + 1 - bar.n)
