"""Safetensors files whose metadata is one JSON text, from bytes that may be a stranger's."""

from __future__ import annotations

import json
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..errors import DataError
from ..strict_json import UNPRINTABLE, parse_json, shortened

METADATA = "hf_sparsify"
MOST_HEADER = 2**23
# What reading something that is not what it should be may raise. RuntimeError: torch's, and nesting that is too deep.
MALFORMED = (
    *(SafetensorError, KeyError, IndexError, TypeError, ValueError, AttributeError, OSError),
    *(ArithmeticError, RuntimeError, MemoryError),
)


def tensor_bytes(tensors: dict[str, Tensor], content: dict[str, Any]) -> bytes:
    """The bytes of a file. One JSON text, because the library writes several metadata entries in a random order: equal
    tensors and content make equal bytes."""
    return save(tensors, metadata={METADATA: json.dumps(content)})


def read_content(data: bytes) -> dict[str, Any]:
    """The JSON object of a file's metadata, {} without one. One of MALFORMED if it is no such file."""
    size = int.from_bytes(data[:8], "little")
    if not 2 <= size <= min(MOST_HEADER, len(data) - 8):
        raise DataError("it has no header of tensors")
    content = parse_json((parse_json(data[8 : 8 + size]).get("__metadata__") or {}).get(METADATA, "{}"))
    if not isinstance(content, dict):
        raise DataError("its metadata is no JSON object")
    return content


def read_tensors(data: bytes) -> dict[str, Tensor]:
    """The tensors of a file, which take no more memory than it. One of MALFORMED if it is no such file."""
    read_content(data)
    return load(data)


def reason(error: BaseException) -> str:
    """What went wrong, in one short line that a terminal can show; libraries quote what they found."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    return shortened(UNPRINTABLE.sub("?", f"{text} is missing" if isinstance(error, KeyError) else text))
