"""What kind of model a configuration is of."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from hf_sparsify.patcher.binding.tasks import task_of


@pytest.mark.parametrize(
    ("config", "task"),
    [
        (transformers.LlamaConfig(architectures=["LlamaForCausalLM"]), "causal-lm"),
        (transformers.GPT2Config(architectures=["GPT2LMHeadModel"]), "causal-lm"),
        (transformers.GPT2Config(), "causal-lm"),
        (transformers.Gemma3Config(architectures=["Gemma3ForConditionalGeneration"]), "causal-lm"),
        (transformers.LlamaConfig(architectures=["OwnForCausalLM"]), "causal-lm"),
        (transformers.LlamaConfig(architectures=["LlamaModel"]), "encoder"),
        (transformers.T5Config(), "seq2seq-lm"),
        (transformers.BartConfig(architectures=["BartModel"]), "seq2seq-lm"),
        (transformers.BertConfig(architectures=["BertForQuestionAnswering"]), "question-answering"),
        (transformers.BartConfig(architectures=["BartForQuestionAnswering"]), "question-answering"),
        (transformers.BertConfig(architectures=["BertForMaskedLM"]), "encoder"),
        (transformers.BertConfig(), "encoder"),
        (transformers.ViTConfig(), "image-or-sound"),
        (transformers.ViTConfig(architectures=["ViTForImageClassification"]), "image-classification"),
        (transformers.CLIPConfig(architectures=["CLIPModel"]), "image-text"),
        (transformers.Wav2Vec2Config(architectures=["Wav2Vec2ForCTC"]), "speech-ctc"),
        (transformers.WhisperConfig(architectures=["WhisperForConditionalGeneration"]), "speech-seq2seq"),
    ],
)
def test_task(config: Any, task: str) -> None:
    assert task_of(config) == task
