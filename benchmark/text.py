"""What the model reads while it is timed: real text, because what sparse attention keeps depends on what it reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import DataError
from ..evaluation.items import ItemSet, Text

# Characters that are tokenized at a time, so that tokenizers do not warn of a text beyond the model's limit.
PIECE = 2000


def texts_of(items: ItemSet) -> list[str]:
    """The texts of a data set's items, each once."""
    texts = (item.text if isinstance(item, Text) else "\n".join(item.fields().values()) for item in items.items)
    return list(dict.fromkeys(texts))


def documentation() -> list[str]:
    """The language reference that comes with Python: half a million characters of technical English.

    DataError where Python was installed without it.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise DataError(
            "this Python comes without its documentation (pydoc_data): name a text with --dataset"
        ) from None
    return [topics[name] for name in sorted(topics)]


def tokens_of(tokenizer: Any, texts: list[str], batch_size: int, length: int) -> Tensor:
    """int64 [batch_size, length]: the texts one after the other, from the start again where they are too short.

    DataError if they hold no token.
    """
    wanted, ids = batch_size * length, []
    text = "\n\n".join(texts)
    for start in range(0, len(text), PIECE):
        ids += tokenizer(text[start : start + PIECE], add_special_tokens=False)["input_ids"]
        if len(ids) >= wanted:
            break
    if not ids:
        raise DataError("the texts hold no token: name others with --dataset")
    return torch.tensor(ids).repeat(-(-wanted // len(ids)))[:wanted].view(batch_size, length)
