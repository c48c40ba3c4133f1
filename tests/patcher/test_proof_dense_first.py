"""What a dense model does itself, such as seeing later tokens, is not laid at the door of its patch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import tiny_models
import torch
from families.every import EVERY
from hf_sparsify.errors import NotPatchableError
from hf_sparsify.patcher.binding.patching import MODEL_ATTRIBUTE
from hf_sparsify.patcher.checks import ProofFailedError
from hf_sparsify.patcher.methods import RowRanges, TopK
from hf_sparsify.patcher.proof import prove
from patched_models import everything
from torch import nn

PADDING, FUTURE = "padding and batching do not matter", "the future does not matter"


@dataclass(frozen=True)
class KeepsAll(TopK):
    """Dense, for methods that have no dense limit of their own."""


@dataclass(frozen=True)
class LooksAhead(TopK):
    """Lets every row see the token after its own."""

    def attend(self, inputs: Any, **options: Any) -> Any:
        seen: RowRanges = inputs.visibility
        ahead = replace(seen, last=(seen.last + 1).clamp(max=inputs.key.shape[2]))
        return super().attend(replace(inputs, visibility=ahead), **options)


def test_a_model_that_hears_padding_itself_is_not_checked_for_it() -> None:
    """Its first layer is normalised over the whole sound, padding included, as that of wav2vec2-base."""
    heard = EVERY["wav2vec2"].build()
    config = type(heard.config)(**{**heard.config.to_dict(), "feat_extract_norm": "group"})
    model = type(heard)(config).eval()
    checks = prove(model, everything(model, TopK(k=64)), None, "speech-ctc")
    assert [check.name for check in checks if check.skipped] == [PADDING]


def looking_both_ways(name: str) -> nn.Module:
    model = EVERY[name].build()
    model.config.is_causal = False
    return model


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt_oss"])
def test_a_decoder_that_sees_later_tokens_itself_is_not_blamed(name: str) -> None:
    model = looking_both_ways(name)
    checks = prove(model, everything(model, TopK(k=64)), None, "causal-lm")
    assert [check.name for check in checks][3:] == [PADDING, FUTURE]
    assert [check.name for check in checks if check.skipped] == [FUTURE]
    assert "the dense model itself sees later tokens" in (checks[-1].skipped or "")


def test_a_causal_decoder_that_the_patch_makes_look_ahead_is_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_models.build("llama")
    monkeypatch.setattr(TopK, "as_dense", lambda self: KeepsAll(keep=1.0))
    with pytest.raises(ProofFailedError, match="the future does not matter: failed for"):
        prove(model, everything(model, LooksAhead(k=8)), None, "causal-lm")


def test_a_model_that_is_never_twice_the_same_says_so() -> None:
    model = tiny_models.build("llama")
    model.model.norm.register_forward_hook(lambda module, args, output: output + torch.rand(1))
    with pytest.raises(NotPatchableError, match=r"LlamaForCausalLM says something else each time .* --no-verify"):
        prove(model, everything(model, TopK(k=4)), None, "causal-lm")


def failing_when(model: nn.Module, patched: bool) -> None:
    def fail(module: nn.Module, args: Any) -> None:
        if hasattr(model, MODEL_ATTRIBUTE) == patched:
            raise KeyError("bbox is needed\nbeside the tokens")

    model.model.norm.register_forward_pre_hook(fail)  # type: ignore[union-attr,operator]


@pytest.mark.parametrize(
    ("patched", "sentence"),
    [
        (False, r"LlamaForCausalLM does not run on random input_ids alone \(.*bbox is needed.*--no-verify"),
        (True, r"the code of LlamaForCausalLM does not run with the patch \(.*bbox is needed.*; nothing was written"),
    ],
)
def test_what_the_code_of_a_model_raises_is_one_sentence(patched: bool, sentence: str) -> None:
    model = tiny_models.build("llama")
    failing_when(model, patched)
    with pytest.raises(NotPatchableError, match=sentence) as caught:
        prove(model, everything(model, TopK(k=4)), None, "causal-lm")
    assert isinstance(caught.value.__cause__, KeyError)
    assert not hasattr(model, MODEL_ATTRIBUTE)
