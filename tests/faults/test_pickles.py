"""Files of others that hold pickles: model weights in every suffix, and precomputed proposals."""

import io
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.data.build import load_proposals_into_dataset

from bn_detect.commands import precise_bn, probe
from bn_detect.data.proposals import dataset_dicts
from bn_detect.engine import BNTrainer
from bn_detect.probes import companion_swap, probe_loader
from bn_detect.runtime.array_pickle import read_arrays
from bn_detect.runtime.checkpoint_file import read_checkpoint
from bn_detect.runtime.checkpointer import AtomicCheckpointer
from bn_detect.runtime.errors import CheckpointError
from tests.helpers.in_process import config
from tests.helpers.train_net import REPOSITORY

from .test_trust import Evil, model, state


def proposals(root: Path) -> dict:
    """Proposals for the images of the fork server's validation set."""
    config(root, "unused")
    ids = [d["image_id"] for d in DatasetCatalog.get("in_process_val")]
    rng = np.random.default_rng(0)
    boxes = [np.sort(rng.uniform(0, 60, (9, 4)).astype(np.float32), axis=1) for _ in ids]
    return {
        "ids": ids,
        "boxes": boxes,
        "objectness_logits": [rng.normal(size=9).astype(np.float32) for _ in ids],
        "bbox_mode": 0,
    }


@pytest.mark.parametrize(
    "command", ["train", "train --eval-only", "train --trust-checkpoint", "precise-bn", "probe"]
)
@pytest.mark.fault(
    "MODEL.LOAD_PROPOSALS with a file of proposals that executes code, in {command}",
    should="one line, exit code 2, nothing executed",
)
def test_proposals_with_code(command, server, tmp_path, happened, capsys):
    mark, file = tmp_path / "mark", tmp_path / "proposals.pkl"
    file.write_bytes(pickle.dumps(proposals(server.root) | {"more": Evil(mark)}))
    keys = {
        "MODEL.LOAD_PROPOSALS": True,
        "DATASETS.PROPOSAL_FILES_TRAIN": f"('{file}',)",
        "DATASETS.PROPOSAL_FILES_TEST": f"('{file}',)",
        "DATASETS.TRAIN": "('coco_2017_val',)",
        "DATASETS.TEST": "('coco_2017_val',)",
    }
    keys = {key.replace(".", "__"): value for key, value in keys.items()}
    if command in ("precise-bn", "probe"):
        cfg = config(server.root, tmp_path, MODEL__PROPOSAL_GENERATOR__NAME="PrecomputedProposals")
        weights = tmp_path / "in.pth"
        torch.save({"model": BNTrainer.build_model(cfg).state_dict()}, weights)
        names = {"DATASETS__TRAIN": "('in_process_val',)", "DATASETS__TEST": "('in_process_val',)"}
        words = server.command.arguments(
            tmp_path,
            "--weights",
            weights,
            "--output",
            tmp_path / "out.pth",
            batch="worker",
            MODEL__PROPOSAL_GENERATOR__NAME="PrecomputedProposals",
            SOLVER__IMS_PER_BATCH=2,
            **keys | names,
        )
        main = probe.main if command == "probe" else precise_bn.main
        code, printed = main(words), capsys.readouterr().err
    else:
        run = server.start(
            tmp_path / "out",
            *command.split()[1:],
            MODEL__PROPOSAL_GENERATOR__NAME="PrecomputedProposals",
            **keys,
        )
        code, printed = run.wait(), run.printed
    assert not mark.exists()
    assert code == 2, printed[-3000:]
    (line,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert str(file) in line and "may execute code" in line
    happened(line.replace(str(tmp_path), "FOLDER"))


@pytest.mark.fault(
    "a harmless file of proposals, as Detectron2 writes it", should="what Detectron2 makes of it"
)
def test_harmless_proposals(server, tmp_path, happened):
    content, file = proposals(server.root), tmp_path / "proposals.pkl"
    for protocol in (2, 5):
        file.write_bytes(pickle.dumps(content, protocol=protocol))
        theirs = load_proposals_into_dataset(DatasetCatalog.get("in_process_val"), str(file))
        for ours, other in zip(
            dataset_dicts(["in_process_val"], [str(file)], filter_empty=False), theirs, strict=True
        ):
            for key in ("proposal_boxes", "proposal_objectness_logits"):
                assert np.array_equal(ours[key], other[key]) and ours[key].dtype == other[key].dtype
            assert ours["proposal_bbox_mode"] == other["proposal_bbox_mode"]
    del content["ids"]
    file.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match=f"{file}, a file of proposals, has no entry 'ids'"):
        dataset_dicts(["in_process_val"], [str(file)], filter_empty=False)
    happened(f"the same proposals for {len(theirs)} images; without ids it is refused")


@pytest.mark.fault(
    "a probe of a model that has a file of proposals",
    should="its RoIs are those of the file; for another dataset the key is named",
)
def test_probe_with_proposals(server, tmp_path, happened):
    content, file = proposals(server.root), tmp_path / "proposals.pkl"
    file.write_bytes(pickle.dumps(content))
    cfg = config(
        server.root,
        tmp_path,
        MODEL__PROPOSAL_GENERATOR__NAME="PrecomputedProposals",
        MODEL__LOAD_PROPOSALS=True,
        DATASETS__TEST="('in_process_val',)",
        DATASETS__PROPOSAL_FILES_TEST=f"('{file}',)",
    )
    loader = probe_loader(cfg, "in_process_val", 2)
    assert all(0 < len(image["proposals"]) <= 9 for batch in loader for image in batch)
    found = companion_swap(BNTrainer.build_model(cfg).eval(), loader, 2)
    with pytest.raises(
        ValueError, match="PROPOSAL_FILES_TEST has no file for dataset 'in_process_t"
    ):
        probe_loader(cfg, "in_process_train", 2)
    happened(f"probed {found.rois} RoIs of {found.images} images")


@pytest.mark.fault(
    "weights in a .pyth file that executes code, with TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1",
    should="refused, nothing executed; a harmless one loads",
)
def test_pyth(tmp_path, monkeypatch, happened):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path, mark = tmp_path / "weights.pyth", tmp_path / "mark"
    torch.save({"model_state": state()["model"], "more": Evil(mark)}, path)
    with pytest.raises(CheckpointError, match="may execute code") as error:
        AtomicCheckpointer(model()).load(str(path))
    assert not mark.exists()
    happened(str(error.value).replace(str(tmp_path), "FOLDER"))
    torch.save({"model_state": state()["model"]}, path)
    loaded = model()
    AtomicCheckpointer(loaded).load(str(path))
    assert loaded.weight.eq(1).all()
    torch.save({"model": state()["model"]}, path)
    with pytest.raises(CheckpointError, match="holds no 'model_state'"):
        AtomicCheckpointer(model()).load(str(path))


OTHER_CONTENT = {
    "a training script's state_dict and epoch": {"state_dict": state()["model"], "epoch": 3},
    "a number as model": {"model": 5, "__author__": "x"},
    "numbers for names": {1: torch.ones(2)},
    "no tensors": {"model": {"weight": "x"}},
    "blobs that are a list": {"blobs": [1]},
}


@pytest.mark.parametrize("kind", OTHER_CONTENT)
@pytest.mark.fault(
    "weights in a .pyth, .pkl or .pth file that holds {kind}",
    should="one line that says what it holds",
)
def test_other_content(kind, tmp_path, happened):
    for suffix in ("pyth", "pkl", "pth"):
        path = tmp_path / f"weights.{suffix}"
        if suffix == "pkl":
            path.write_bytes(pickle.dumps(_arrays(OTHER_CONTENT[kind])))
        else:
            torch.save(OTHER_CONTENT[kind], path)
        with pytest.raises(CheckpointError, match=str(path)) as error:
            AtomicCheckpointer(model()).load(str(path))
    happened(str(error.value).replace(str(tmp_path), "FOLDER"))


def _arrays(tree):
    """Replace tensors by arrays, as files of the model zoo have them."""
    if isinstance(tree, dict):
        return {key: _arrays(value) for key, value in tree.items()}
    return tree.numpy() if torch.is_tensor(tree) else tree


class _State:
    """Pickles as a call of `function`, and then a state for what it returns."""

    def __init__(self, function, args: tuple, state: object) -> None:
        self.reduced = function, args, state

    def __reduce__(self):
        return self.reduced


FLAGS = 63  # of numpy's dtypes that hold pointers: they are counted, and followed when freed
FORGED = {
    "flags of pointers": _State(np.dtype, ("f8",), (3, "<", None, None, None, -1, -1, FLAGS)),
    "an object field": np.dtype([("a", "O"), ("b", "f4")]),
    "objects": np.array([None, 1], dtype=object),
    "fields of one's own": _State(
        np.dtype, ("V8",), (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, FLAGS)
    ),
    "a sub-array": np.dtype((np.float32, (2,))),
    "text": np.array(["a"]),
    "dates": np.array(["2001-01-01"], dtype="M8[D]"),
    "a state for a list": _State(list, (), {"append": 1}),
}


@pytest.mark.parametrize("kind", FORGED)
@pytest.mark.fault(
    "a .pkl checkpoint whose arrays are described by {kind}", should="refused; no pointer is made"
)
def test_forged(kind, tmp_path, happened):
    path = tmp_path / "forged.pkl"
    for protocol in (2, 5):
        path.write_bytes(pickle.dumps({"model": {"weight": FORGED[kind]}}, protocol=protocol))
        with pytest.raises(CheckpointError, match=str(path)) as error:
            read_checkpoint(path)
    happened(str(error.value).replace(str(tmp_path), "FOLDER"))


FUZZ = """
import os, pickle, random, sys, tempfile
import numpy as np
from collections import OrderedDict
from bn_detect.runtime.array_pickle import read_arrays
import io

def no_code(event, args):
    if event.split(".")[0] in ("os", "subprocess", "socket", "shutil", "open", "exec", "compile"):
        raise SystemExit(f"it did {event} {args}")

content = {"model": OrderedDict(a=np.arange(6, dtype=np.float32).reshape(2, 3), b=np.zeros((0, 3)),
           c=np.asfortranarray(np.eye(3)), d=np.array(3), e=np.arange(3, dtype=">i2")),
           "__author__": "x", "scale": np.float64(2), "more": (1, [2.5, b"ab"], {3, 4}, None)}
bases = [pickle.dumps(content, protocol=p) for p in (0, 2, 3, 4, 5)]
rng, read, count = random.Random(int(sys.argv[2])), 0, int(sys.argv[1])
for base in bases:
    read_arrays(io.BytesIO(base))  # imports its codecs
sys.addaudithook(no_code)
for _ in range(count):
    data = bytearray(rng.choice(bases))
    for _ in range(rng.randint(1, 5)):
        place = rng.randrange(len(data))
        kind = rng.randrange(5)
        if kind == 0: data[place] ^= 1 << rng.randrange(8)
        elif kind == 1: data[place] = rng.randrange(256)
        elif kind == 2: del data[place : place + rng.randint(1, 8)]
        elif kind == 3: data[place:place] = bytes(rng.randrange(256) for _ in range(4))
        else:
            other = rng.randrange(len(data)); data[place:place] = data[other : other + 12]
    try:
        result = read_arrays(io.BytesIO(bytes(data)))
        repr(result); del result
        read += 1
    except (SystemExit, KeyboardInterrupt): raise
    except Exception: pass
print(read)
"""


@pytest.mark.fault(
    "mutated .pkl files, read one after the other in a process of its own",
    should="refused or read; no signal, and no code",
)
def test_fuzz(size, happened):
    count = size(600, 10_000)
    command = [sys.executable, "-W", "ignore", "-c", FUZZ, str(count), "7"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=600)
    assert run.returncode == 0, (run.returncode, run.stderr[-3000:])
    read = int(run.stdout)
    assert read > count / 100  # some mutations spare the content
    happened(f"{count} files: {count - read} refused, {read} read; exit code 0")


def test_a_size_that_is_claimed_takes_no_memory():
    for claim in (
        b"\x80\x05\x96" + (2**40).to_bytes(8, "little"),  # BYTEARRAY8
        b"\x80\x04\x8e" + (2**40).to_bytes(8, "little"),  # BINBYTES8
        b"\x80\x02}r" + (2**31 - 1).to_bytes(4, "little") + b".",  # a place in the memo
    ):
        try:
            read_arrays(io.BytesIO(claim))
        except MemoryError:
            pytest.fail("it tried to take the memory")
        except Exception:
            continue
