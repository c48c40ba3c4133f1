"""What a model of sound comes with: what makes its inputs of sound, and what makes words of its tokens."""

from __future__ import annotations

import logging
from typing import Any

from transformers import AutoFeatureExtractor, AutoTokenizer

logger = logging.getLogger(__name__)


def load_processor(name: str, common: dict[str, Any]) -> tuple[Any, Any]:
    """The feature extractor and the tokenizer of a model of sound; None for both if one of them cannot be loaded.

    Patching needs neither, so it is for whoever needs them to refuse. common: the arguments of every from_pretrained.
    Not AutoProcessor, which for some models also wants a language model and its decoder.
    """
    extractor = _loaded(AutoFeatureExtractor, name, common)
    # Without files Whisper's tokenizer is one of no words, and no error.
    tokenizer = None if extractor is None else _loaded(AutoTokenizer, name, common)
    return (None, None) if tokenizer is None else (extractor, tokenizer)


def _loaded(auto_class: Any, name: str, common: dict[str, Any]) -> Any:
    try:
        return auto_class.from_pretrained(name, **common)
    except Exception as error:  # a missing or damaged file ends in whatever the libraries happen to raise
        if "trust_remote_code" in str(error):
            raise
        logger.debug("%s has no %s: %s", name, auto_class.__name__, error)
        return None
