"""Images and sound for models that do not read text: in a shape that the model takes."""

from __future__ import annotations

import inspect

import pytest
import torch
import transformers
from families.every import EVERY
from families.images_and_speech import IMAGES_AND_SPEECH
from hf_sparsify.errors import NotPatchableError
from hf_sparsify.patcher.random_inputs import other_inputs, takes_text


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("vit", (1, 3, 12, 12)),
        ("clip", (1, 3, 12, 12)),
        ("siglip", (1, 3, 12, 12)),
        ("wav2vec2", (1, 8 * 50)),
        ("whisper", (1, 8, 24)),
    ],
)
def test_the_shape_is_what_the_configuration_says(name: str, shape: tuple[int, ...]) -> None:
    model = EVERY[name].build().to(torch.bfloat16)
    [made] = other_inputs(model, inspect.signature(model.forward).parameters).values()
    assert made.shape == shape
    assert made.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["llama", "bert", "t5", "two_berts"])
def test_models_of_text_need_nothing_else(name: str) -> None:
    model = EVERY[name].build()
    assert takes_text(model)
    assert other_inputs(model, inspect.signature(model.forward).parameters) == {}


def test_which_models_read_text_first() -> None:
    assert {name for name, family in IMAGES_AND_SPEECH.items() if takes_text(family.build())} == {"clip", "siglip"}


def test_an_unknown_shape_is_refused_with_the_way_out() -> None:
    config = transformers.ASTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=40)
    model = transformers.ASTForAudioClassification(config)
    with pytest.raises(NotPatchableError, match=r"input_values that ASTForAudioClassification takes .* --no-verify"):
        other_inputs(model, inspect.signature(model.forward).parameters)
