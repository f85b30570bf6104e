"""A study and a domain-shift of a tiny detector, whose runs the tests prepare but do not start."""

from pathlib import Path

import torch
import yaml

from bn_detect.commands import domain_shift
from bn_detect.commands import study as command
from bn_detect.engine import BNTrainer
from bn_detect.study.folders import prepare_folders
from bn_detect.study.reading import read_study
from bn_detect.study.runs import Run, plan_runs
from tests.helpers.in_process import config


class Studies:
    """A study's file, the command line that runs it, and one for domain-shift."""

    def __init__(self, root: Path, folder: Path) -> None:
        cfg = config(root, folder)
        cfg.DATASETS.TEST = ("in_process_val",)
        (folder / "base.yaml").write_text(cfg.dump())
        self.weights = folder / "in.pth"
        torch.save({"model": BNTrainer.build_model(cfg).state_dict()}, self.weights)
        self.file = folder / "study.yaml"
        content = {"name": "mine", "base": str(folder / "base.yaml"), "arms": [{"name": "an arm"}]}
        self.file.write_text(yaml.safe_dump(content | {"measure": ["companion_swap"]}))
        self.of_study = ["--study", str(self.file), "--output"]
        files = ["--config-file", folder / "base.yaml", "--weights", self.weights]
        self.of_domain_shift = [*map(str, files), "--corruptions", "contrast", "--output"]

    def main(self, name: str, output: Path, *flags: str) -> int:
        if name == "study":
            return command.main([*self.of_study, str(output), *flags])
        return domain_shift.main([*self.of_domain_shift, str(output), *flags])

    def run(self, output: Path) -> Run:
        """Prepare the run's folder, as if the study had been ended then."""
        ((planned,),) = plan_runs(read_study(self.file), output)
        prepare_folders([planned])
        return planned


def files(folder: Path) -> dict[Path, bytes]:
    names = (".in_use", ".lock")
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name not in names}


def one_line(capsys, *parts: object) -> str:
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1, printed
    assert all(str(part) in printed for part in parts), printed
    return printed.strip()
