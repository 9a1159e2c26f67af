"""What makes two runs of a recipe give identical weights: seeds, threads, deterministic algorithms, the device."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from nnicompress import distributed
from nnicompress.errors import ConfigError
from nnicompress.evaluators.preserve import seed_everything as seed_everything
from nnicompress.pipeline.settings import RuntimeSettings


def resolve_device(runtime: RuntimeSettings) -> torch.device:
    """The device that `runtime.device` means on this machine; each of several processes has a CUDA device of its own.

    Raises:
        ConfigError: the device is named and isn't there, or there are fewer than processes.
    """
    if runtime.device in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", distributed.local_device("cuda", torch.cuda.device_count()))
    device = torch.device("cpu" if runtime.device == "auto" else runtime.device)
    if distributed.launched() and (":" in runtime.device or device.type == "mps"):
        raise ConfigError(
            f"{runtime.device!r} is one device, and each of {os.environ['WORLD_SIZE']} processes needs its own; use "
            "auto, cuda or cpu",
            key="runtime.device",
        )
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }[device.type]
    if not there:
        raise ConfigError(f"device {runtime.device!r} is not available here; use auto or cpu", key="runtime.device")
    return device


@contextmanager
def controlled(seed: int, runtime: RuntimeSettings) -> Iterator[torch.device]:
    """Seed everything and apply `runtime` for the block; afterwards the process is as it was before.

    Random states, the number of threads and the deterministic switch are the process's own: a run started from
    somebody's notebook gives them back.
    """
    device = resolve_device(runtime)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, workspace = torch.backends.cudnn.benchmark, os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    try:
        if runtime.threads is not None:
            torch.set_num_threads(runtime.threads)
        if runtime.deterministic:
            # cuBLAS is only deterministic with a fixed workspace; read when the first handle is made.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.backends.cudnn.benchmark = False
            torch.use_deterministic_algorithms(True)
        seed_everything(seed)
        yield device
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
        if workspace is None:
            os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
