"""What tells one sensitivity map, and one tuning, from another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict

from torch import Tensor

from ..evaluation.dense_cache import dense_key
from ..evaluation.tasks import Task
from ..patcher.binding.loading import LoadedModel
from ..patcher.methods import Method, method_to_dict
from ..tuning.ladder import grid_for
from .tune_options import TuneData, TuneOptions


def map_key(
    loaded: LoadedModel, task: Task, plan: dict[str, Method], options: TuneOptions, read: list[list[dict[str, Tensor]]]
) -> str:
    """64 hex digits over all that a map follows from. read: the model inputs of every item."""
    digest = hashlib.sha256()
    for one in (one for inputs in read for one in inputs):
        for name, tensor in sorted(one.items()):
            digest.update(f"{name} {tensor.tolist()}".encode())
    content = [
        dense_key(loaded, task),
        {name: method_to_dict(method) for name, method in plan.items()},
        grid_for(options.keeps),
        options.goal if options.goal != "kept" else "",
        options.asking.seed,
        digest.hexdigest(),
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def run_key(of_map: str, uniform: Iterable[str], data: TuneData, options: TuneOptions) -> str:
    """64 hex digits over all that tells one tuning from another; gates do not belong to it. uniform: the modules that
    the uniform keep is for."""
    asked = {name: value for name, value in asdict(options.asking).items() if name not in ("gate", "cache")}
    others = [options.attention, options.goal, options.keeps, sorted(uniform), data.evaluation.fingerprint, asked]
    return hashlib.sha256(json.dumps([of_map, others], sort_keys=True, default=str).encode()).hexdigest()
