"""Loading a dense model with its tokenizer, from the Hub, a local folder or a GGUF file."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForCTC,
    AutoModelForImageClassification,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForSpeechSeq2Seq,
    AutoTokenizer,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    MODEL_MAPPING,
)

from ...errors import NotPatchableError, SparsifyError, UsageError
from ...hub import hub_answers
from ..random_inputs import compares_images_with_text, takes_text
from ..recipe import BaseModel

logger = logging.getLogger(__name__)

AUTO_CLASSES = {
    "causal-lm": AutoModelForCausalLM,
    "seq2seq-lm": AutoModelForSeq2SeqLM,
    "question-answering": AutoModelForQuestionAnswering,
    "text-classification": AutoModelForSequenceClassification,
    "image-classification": AutoModelForImageClassification,
    "speech-ctc": AutoModelForCTC,
    "speech-seq2seq": AutoModelForSpeechSeq2Seq,
    "encoder": AutoModel,
    "image-text": AutoModel,
    "image-or-sound": AutoModel,
}
# Models that do not read text, or not text alone: they are patched and proven, and there are no data sets for them.
WITHOUT_TEXT = frozenset({"image-classification", "speech-ctc", "speech-seq2seq", "image-text", "image-or-sound"})

# A task of a model with a head, by what its class is called.
HEADS = {
    "ForQuestionAnswering": "question-answering",
    "ForSequenceClassification": "text-classification",
    "ForImageClassification": "image-classification",
    "ForCTC": "speech-ctc",
}

CONFIG_FILE = "config.json"
WEIGHTS_FILES = ("model.safetensors", "model.safetensors.index.json")

# What two models must share for one recipe to fit both, under the names that families give it.
SHAPE_FIELDS = frozenset(
    {
        *("model_type", "is_encoder_decoder", "vocab_size", "layer_types", "sliding_window"),
        *("hidden_size", "d_model", "n_embd", "dim", "head_dim", "d_kv"),
        *("num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_decoder_layers"),
        *("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"),
        *("num_attention_heads", "num_heads", "n_head", "n_heads", "num_key_value_heads"),
        *("intermediate_size", "d_ff", "ffn_dim", "n_inner"),
    }
)


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
    """A dense model ready to run, its tokenizer (None if it takes images or sound), and who it is.

    unused: weights that are random and change nothing.
    """

    model: Any
    tokenizer: Any
    base: BaseModel
    unused: frozenset[str] = frozenset()


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
        tokenizer = _tokenizer(name, task, common) if takes_text(model) else None
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
    return LoadedModel(model.eval(), tokenizer, base, frozenset(unused))


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


def task_of(config: Any) -> str:
    """The task that a configuration is for: a key of AUTO_CLASSES."""
    architectures = getattr(config, "architectures", None) or [""]
    for head, task in HEADS.items():
        if head in architectures[0]:
            return task
    if compares_images_with_text(config):
        return "image-text"
    if architectures[0] in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES.values():
        return "speech-seq2seq"
    if getattr(config, "is_encoder_decoder", False):
        return "seq2seq-lm"
    if architectures[0] in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() or architectures[0].endswith("ForCausalLM"):
        return "causal-lm"
    bare = not architectures[0] and config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if bare and config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "causal-lm"
    return "encoder" if takes_text(MODEL_MAPPING.get(type(config), None)) else "image-or-sound"


def config_hash(config: Any) -> str:
    """sha256 over a configuration's shape fields; the same for a fine-tuned copy and across transformers versions."""
    return hashlib.sha256(json.dumps(_shape(config.to_dict()), sort_keys=True, default=str).encode()).hexdigest()


def _shape(config: dict[str, Any]) -> dict[str, Any]:
    """The shape fields of a configuration and of those inside it (text_config, vision_config, encoder ...)."""
    parts = {key: _shape(value) for key, value in config.items() if isinstance(value, dict) and "model_type" in value}
    return {key: value for key, value in config.items() if key in SHAPE_FIELDS and value is not None} | parts


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


def holds_model(directory: Path) -> bool:
    """Whether a folder holds a model with its weights."""
    return (directory / CONFIG_FILE).is_file() and any((directory / name).is_file() for name in WEIGHTS_FILES)


def find_base_model(base: BaseModel, recipe_directory: Path) -> str:
    """Where a recipe's base model is now. A local folder that moved is looked for, by name and config hash, beside the
    recipe and in the working directory. SparsifyError says how to name it, also where a folder has the name of a model
    on the Hub."""
    path = Path(base.id)
    there = os.path.exists(path)
    if not path.is_absolute() and there:
        raise SparsifyError(
            f"the recipe is for {base.id} on the Hub, and here is a folder of that name: say which with --model, "
            f"./{base.id} for the folder"
        )
    if not path.is_absolute() or there:
        return base.id
    for candidate in (recipe_directory / path.name, recipe_directory.parent / path.name, Path.cwd() / path.name):
        if os.path.isfile(candidate / CONFIG_FILE):
            try:
                # Without False transformers asks on the terminal whether to run a folder's code.
                found = config_hash(AutoConfig.from_pretrained(candidate, trust_remote_code=False))
            except Exception:  # no configuration that can be read
                continue
            if found == base.config_hash:
                return str(candidate)
    raise SparsifyError(f"the recipe's model {base.id} is not there any more: say where it is with --model")


def options_for(base: BaseModel, options: LoadOptions) -> LoadOptions:
    """Load options with what the recipe recorded filled in where the person said nothing."""
    return replace(options, revision=options.revision or base.revision, gguf_file=options.gguf_file or base.gguf_file)
