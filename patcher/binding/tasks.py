"""What kind of model a configuration is of, and the class that loads it."""

from __future__ import annotations

from typing import Any

from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForCTC,
    AutoModelForImageClassification,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForSpeechSeq2Seq,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    MODEL_MAPPING,
)

from ..random_inputs import compares_images_with_text, takes_text
from .causality import looks_both_ways

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
# Models of speech, by labels of frames or by writing.
TRANSCRIBING = frozenset({"speech-ctc", "speech-seq2seq"})
# Models that do not read text, or not text alone: they are patched and proven, and but for speech there are no data
# sets for them.
WITHOUT_TEXT = frozenset({"image-classification", "image-text", "image-or-sound"}) | TRANSCRIBING

# A task of a model with a head, by what its class is called.
HEADS = {
    "ForQuestionAnswering": "question-answering",
    "ForSequenceClassification": "text-classification",
    "ForImageClassification": "image-classification",
    "ForCTC": "speech-ctc",
}


def task_of(config: Any) -> str:
    """The task that a configuration is for: a key of AUTO_CLASSES. What looks both ways is an encoder."""
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
    if looks_both_ways(config):
        return "encoder"
    if architectures[0] in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() or architectures[0].endswith("ForCausalLM"):
        return "causal-lm"
    bare = not architectures[0] and config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if bare and config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "causal-lm"
    return "encoder" if takes_text(MODEL_MAPPING.get(type(config), None)) else "image-or-sound"
