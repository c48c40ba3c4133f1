"""Answers of dense models, kept so that every later recipe for the same model finds them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..environment import package_versions
from ..patcher.binding.loading import LoadedModel
from ..patcher.binding.modules import input_device, unwrapped
from ..patcher.weights import weights_fingerprint
from .items import Item
from .tasks.base import Answer, Task

logger = logging.getLogger(__name__)

# What changes answers; other packages of ours do not.
PACKAGES = ("hf-sparsify", "torch", "transformers", "tokenizers")


def dense_key(loaded: LoadedModel, task: Task) -> dict[str, Any]:
    """All that a dense model's answer to given tokens follows from.

    The batch size is not part of it: it does not change answers, but for near ties (see docs/evaluation.md).
    """
    model: Any = unwrapped(loaded.model)
    config = model.config.to_dict()
    generation = getattr(model, "generation_config", None)
    versions = package_versions()
    return {
        "weights": weights_fingerprint(model, loaded.unused),
        # Of offloaded weights there is no fingerprint.
        "model": asdict(loaded.base) if has_offloaded_weights(loaded) else None,
        "tokenizer": _tokenizer_hash(loaded.tokenizer),
        **({} if loaded.extractor is None else {"extractor": loaded.extractor.to_json_string()}),
        "config": hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest(),
        "attention": model.config._attn_implementation,
        "dtype": str(model.dtype),
        "device": input_device(model).type,
        "versions": {name: versions[name] for name in PACKAGES if name in versions},
        "task": task.name,
        "style": task.style,
        "dataset": task.items.dataset.name,
        "labels": task.items.dataset.labels,
        "decoding": None if task.max_new_tokens is None or generation is None else generation.to_diff_dict(),
        "max_new_tokens": task.max_new_tokens,
    }


def has_offloaded_weights(loaded: LoadedModel) -> bool:
    """Whether Accelerate keeps weights elsewhere, so that nothing here tells them from others."""
    return any(parameter.is_meta for parameter in loaded.model.parameters())


def _tokenizer_hash(tokenizer: Any) -> str:
    """Answers are decoded text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = json.dumps(tokenizer.get_vocab(), sort_keys=True) if backend is None else ""
    text = f"{type(tokenizer).__name__} {words}" if backend is None else backend.to_str()
    return hashlib.sha256(text.encode()).hexdigest()


def key_hash(key: dict[str, Any]) -> str:
    """32 hex digits of a key."""
    return hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:32]


def cache_name(tokens: Sequence[int], item: Item) -> str:
    """32 hex digits of what the model reads and the item itself: an answer may be words that are cut from it."""
    return hashlib.sha256(json.dumps([list(tokens), item.content()]).encode()).hexdigest()[:32]


class DenseCache:
    """One file of answers for one key, by cache_name.

    Lines are only ever appended, each in one write, so that several processes can share the file and a killed one
    leaves at most a line that is cut short, which reading passes over. A run does not read what it wrote itself: where
    inputs come twice, a part that is done again would find more there than it did at first, and end in other digits.
    """

    def __init__(self, key: dict[str, Any], folder: Path | None = None, *, run: str | None = None) -> None:
        """folder: by default hf_sparsify/dense below the Hugging Face cache directory (HF_HOME). run: who asks."""
        self.file = (folder or default_folder()) / f"{key_hash(key)}.jsonl"
        self.answers: dict[str, Answer] = {}
        self._key, self._run = key, run
        self._written: set[str] = set()
        self._writable = True
        try:
            lines = self.file.read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError:
            return
        for line in lines:
            try:
                entry = json.loads(line)
                self._read(str(entry["name"]), entry["answer"], entry.get("run"))
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # the key, an empty line, or one that was cut short

    def _read(self, name: str, answer: Any, run: str | None) -> None:
        if not isinstance(answer, dict) or not answer:
            return
        self._written.add(name)
        if run is None or run != self._run:
            self.answers.setdefault(name, answer)

    def add(self, answers: dict[str, Answer]) -> None:
        """Keeps answers by their cache_name. A folder that cannot be written is a warning, once."""
        new = {name: answer for name, answer in answers.items() if name not in self._written}
        if not new or not self._writable:
            return
        self._written |= new.keys()
        lines = [json.dumps({"name": name, "run": self._run, "answer": answer}) for name, answer in new.items()]
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            _append(self.file, lines, header=json.dumps({"key": self._key}, default=str))
        except OSError as error:
            self._writable = False
            logger.warning("warning: dense answers cannot be kept in %s: %s", self.file.parent, error.strerror or error)


def default_folder() -> Path:
    """Where the answers are kept; it may be deleted at any time."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "hf_sparsify" / "dense"


def _append(file: Path, lines: list[str], header: str) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        if os.fstat(descriptor).st_size == 0:
            lines = [header, *lines]
        # Begins with a new line, because the last one may have been cut short.
        os.write(descriptor, ("\n" + "\n".join(lines) + "\n").encode())
    finally:
        os.close(descriptor)
