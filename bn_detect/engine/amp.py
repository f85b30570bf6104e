"""Automatic mixed precision on CPU, which Detectron2's trainer leaves to CUDA."""

import time

import torch
from detectron2.engine import SimpleTrainer


class CPUAMPTrainer(SimpleTrainer):
    """`SimpleTrainer` with its forward under bfloat16 autocast, which needs no loss scaling."""

    def run_step(self) -> None:
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss_dict = self.model(data)
        self.optimizer.zero_grad()
        sum(loss_dict.values()).backward()
        self.after_backward()
        self._write_metrics(loss_dict, data_time)
        self.optimizer.step()
