"""Loading a dense model with its tokenizer, from the Hub, a local folder or a GGUF file."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer

from ...errors import NotPatchableError, SparsifyError, UsageError
from ...hub import NOT_THERE, hub_answers, refusal
from ..random_inputs import takes_text
from ..recipe import BaseModel
from .base_model import config_hash
from .processors import load_processor
from .tasks import AUTO_CLASSES, TRANSCRIBING, task_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadOptions:
    """How to load. dtype and device take "auto". trust_remote_code runs code that comes with the model: off.

    device_map: spread over all devices by Accelerate ("auto", "balanced" ...), for models larger than one of them.
    """

    dtype: str = "auto"
    device: str = "auto"
    revision: str | None = None
    trust_remote_code: bool = False
    gguf_file: str | None = None
    device_map: str | None = None


@dataclass(frozen=True)
class LoadedModel:
    """A dense model ready to run, its tokenizer (None if it takes images), and who it is.

    unused: weights that are random and change nothing. extractor: what makes inputs of sound, for models that
    transcribe; it and their tokenizer are None where the model's folder has none.
    """

    model: Any
    tokenizer: Any
    base: BaseModel
    unused: frozenset[str] = frozenset()
    extractor: Any = None


def load_model(name: str, options: LoadOptions | None = None) -> LoadedModel:
    """Loads a model by Hub name or folder.

    UsageError for a bad dtype or device, NotPatchableError for a model whose own code was not trusted, SparsifyError in
    one sentence with the fix if it cannot be found or read.
    """
    options = options or LoadOptions()
    _check_name(name)
    dtype, device = resolve_dtype(options.dtype), resolve_device(options.device)
    if options.device_map is not None and options.device != "auto":
        raise UsageError("--device-map and --device exclude each other: give one")
    common = _where(name, options)
    try:
        config = AutoConfig.from_pretrained(name, **common)
        task = task_of(config)
        extra = _dequantized() if options.gguf_file else {}
        if options.device_map is not None:
            extra["device_map"] = options.device_map
        model, report = AUTO_CLASSES[task].from_pretrained(
            name, dtype=dtype, output_loading_info=True, **common, **extra
        )
        extractor, tokenizer = load_processor(name, common) if task in TRANSCRIBING else (None, None)
        if takes_text(model):
            tokenizer = _tokenizer(name, task, common)
    except SparsifyError:
        raise
    except Exception as error:  # damaged files end in whatever the libraries happen to raise
        raise _refusal(name, error) from error
    # Poolers are no part of most checkpoints, and attention does not depend on them.
    if missing := sorted(key for key in report["missing_keys"] if "pooler" not in key):
        logger.warning(
            "warning: %s has no weights for %d parameters, e.g. %s: they are random", name, len(missing), missing[0]
        )
    base = base_model(name, config, options)
    if options.device_map is None:
        model = model.to(device)
    # An encoder is used for its tokens; a classifier's pooler matters.
    unused = {key for key in report["missing_keys"] if "pooler" in key} if task == "encoder" else set()
    return LoadedModel(model.eval(), tokenizer, base, frozenset(unused), extractor)


def load_config(name: str, options: LoadOptions) -> Any:
    """The configuration of a model alone, by Hub name or folder; nothing else is read. Raises what load_model raises,
    and NotPatchableError for a model that is code of its own."""
    _check_name(name)
    try:
        return AutoConfig.from_pretrained(name, **_where(name, options))
    except Exception as error:
        raise _refusal(name, error) from error


def _check_name(name: str) -> None:
    if not name.strip():
        raise UsageError("the model's name is empty")
    if os.path.isfile(name):
        raise SparsifyError(f"{name} is a file: name the folder of the model (for a GGUF file, with --gguf-file)")


def _where(name: str, options: LoadOptions) -> dict[str, Any]:
    """The arguments of every from_pretrained that say where a model is and what may run."""
    common: dict[str, Any] = {"trust_remote_code": options.trust_remote_code}
    if not os.path.exists(name) and not hub_answers():
        common["local_files_only"] = True
    if options.revision is not None:
        common["revision"] = options.revision
    if options.gguf_file is not None:
        common["gguf_file"] = options.gguf_file
    return common


def base_model(name: str, config: Any, options: LoadOptions) -> BaseModel:
    """Who a model is, by its name and configuration."""
    return BaseModel(
        id=str(Path(name).resolve()) if os.path.exists(name) else name,
        task=task_of(config),
        model_type=str(config.model_type),
        config_hash=config_hash(config),
        revision=getattr(config, "_commit_hash", None) or options.revision,
        gguf_file=options.gguf_file,
    )


def resolve_device(device: str) -> torch.device:
    """ "auto" is CUDA, then MPS, then the CPU. UsageError for what this machine lacks.

    Of several processes that a launcher started each gets a CUDA device of its own.
    """
    if device == "auto":
        if torch.cuda.is_available():
            local = os.environ.get("LOCAL_RANK")
            return torch.device("cuda" if local is None else f"cuda:{int(local) % torch.cuda.device_count()}")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = torch.device("meta")
    if chosen.type not in ("cpu", "mps", "cuda"):
        raise UsageError(f"device must be auto, cpu, mps or cuda[:n], not {device!r}")
    if chosen.type == "cuda" and (not torch.cuda.is_available() or (chosen.index or 0) >= torch.cuda.device_count()):
        raise UsageError(f"device {device} is not available here: torch sees {torch.cuda.device_count()} CUDA devices")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("device mps is not available here")
    return chosen


def resolve_dtype(name: str) -> Any:
    """ "auto" or a torch.dtype. UsageError for another name."""
    names = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in names:
        raise UsageError(f"dtype must be one of {', '.join(names)}, not {name!r}")
    return names[name]


def _dequantized() -> dict[str, Any]:
    """The argument that loads a GGUF file as ordinary weights, which transformers before 5.16 always does."""
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


def _tokenizer(name: str, task: str, common: dict[str, Any]) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **common)
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise
        raise SparsifyError(
            f"{name} has no tokenizer that can be loaded: add its tokenizer.json, or install what its tokenizer needs"
        ) from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise SparsifyError(f"the tokenizer of {name} has neither a padding nor an end token: give it one")
        tokenizer.pad_token = tokenizer.eos_token
    # Generation continues the prompt, so a decoder's padding has to come before it.
    tokenizer.padding_side = "left" if task == "causal-lm" else "right"
    return tokenizer


def _refusal(name: str, error: Exception) -> SparsifyError:
    if "trust_remote_code" in str(error):
        return NotPatchableError(
            f"{name} comes with its own code: read that code, then pass --trust-remote-code to run it"
        )
    return SparsifyError(_why(name, error))


def _why(name: str, error: Exception) -> str:
    text, first = str(error), _first_line(error)
    folder = Path(name)
    if os.path.isdir(folder):  # unlike is_dir also for a name that is too long
        if not (folder / "config.json").exists():
            ggufs = sorted(path.name for path in folder.glob("*.gguf"))
            hint = f": pass --gguf-file {ggufs[0]}" if ggufs else " (it has no config.json)"
            return f"{name} is a folder but not a model{hint}"
        if "ignore_mismatched_sizes" in text:
            first = "its weights have other shapes than its config.json says"
        return f"the model in {name} cannot be loaded: {first}"
    if isinstance(error, OSError) and (folder.is_absolute() or name.startswith((".", "~"))):
        return f"there is no folder {name}"
    refused = refusal(error)
    if refused == NOT_THERE:
        return f"unknown model {name!r}: there is no such folder (a recipe or a model), and on the Hub {refused}"
    if refused:
        return f"the model {name} cannot be loaded: {refused}"
    if isinstance(error, OSError):
        return (
            f"unknown model {name!r}: there is no such folder (a recipe or a model), and the Hub cannot be reached or "
            "has no such model; "
            f"check the name, or fetch it where there is a network with `hf download {name}`"
        )
    return f"the model {name} cannot be loaded: {first}"


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def options_for(base: BaseModel, options: LoadOptions) -> LoadOptions:
    """Load options with what the recipe recorded filled in where the person said nothing."""
    return replace(options, revision=options.revision or base.revision, gguf_file=options.gguf_file or base.gguf_file)
