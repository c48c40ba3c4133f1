"""The proof of patch passes on every family, and fails, naming the module, when something is broken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import feed_forward_models
import pytest
import tiny_models
import torch
from families.every import EVERY
from hf_sparsify.errors import NotPatchableError
from hf_sparsify.patcher.binding import attention
from hf_sparsify.patcher.binding.modules import attention_modules
from hf_sparsify.patcher.binding.patching import MODEL_ATTRIBUTE
from hf_sparsify.patcher.checks import Check, ProofFailedError
from hf_sparsify.patcher.methods import AttentionMethod, Chunk, TopK, TopTheta
from hf_sparsify.patcher.methods.chunk import Selection
from hf_sparsify.patcher.proof import prove
from hf_sparsify.patcher.thresholds import ModuleThresholds
from torch import nn
from transformers import AttentionMaskInterface

TASKS = {
    "llama": "causal-lm",
    "mistral": "causal-lm",
    "gemma2": "causal-lm",
    "gpt_oss": "causal-lm",
    "gpt2": "causal-lm",
    "bert": "question-answering",
    "t5": "seq2seq-lm",
    "bart": "seq2seq-lm",
}
EVERY_CHECK = [
    "every planned module is called",
    "unpatching restores the dense model to the bit",
    "keeping all equals the dense model",
    "padding and batching do not matter",
    "the future does not matter",
    "cached decoding equals the full forward pass",
]


def plan_for(model: nn.Module, method: AttentionMethod) -> dict[str, AttentionMethod]:
    return {module.name: method for module in attention_modules(model)}


def fails(name: str, model: nn.Module, plan: dict[str, AttentionMethod]) -> list[Check]:
    """The failed checks; the model is dense again."""
    with pytest.raises(ProofFailedError) as caught:
        prove(model, plan, None, TASKS[name])
    assert caught.value.exit_code == 4
    assert not hasattr(model, MODEL_ATTRIBUTE)
    first = next(check for check in caught.value.checks if not check.passed)
    assert first.name in str(caught.value)
    assert all(module in str(caught.value) for module in first.modules)
    return [check for check in caught.value.checks if not check.passed]


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize(
    "method",
    [TopK(k=64), TopTheta(k=4), TopK(keep=0.2), TopK(k=4, compensation="sdc+vmc", v_mean="dropped")],
    ids=["top-k", "top-theta", "keep", "compensated"],
)
def test_every_family_passes(name: str, method: AttentionMethod) -> None:
    model = tiny_models.build(name)
    implementation = model.config._attn_implementation
    checks = prove(model, plan_for(model, method), None, TASKS[name])
    assert all(check.passed for check in checks)
    expected = EVERY_CHECK if name != "bert" else EVERY_CHECK[:4]
    assert [check.name for check in checks] == expected
    assert not hasattr(model, MODEL_ATTRIBUTE)
    assert model.config._attn_implementation == implementation


@pytest.mark.parametrize(("placement", "theta"), [("post-softmax", -2.0), ("max-relative", -1.5), ("pre-softmax", 0.4)])
@pytest.mark.parametrize("compensation", ["none", "sdc", "sdc+vmc"])
def test_thresholds_take_part(placement: str, theta: float, compensation: str) -> None:
    model = tiny_models.build("llama")
    plan = plan_for(model, TopTheta(k=4, placement=placement, compensation=compensation))
    table = ModuleThresholds(torch.tensor([4.0, 48.0]), torch.full((4, 2), theta), 4, 48, placement)
    assert all(check.passed for check in prove(model, plan, dict.fromkeys(plan, table), "causal-lm"))


def test_no_random_state_is_moved() -> None:
    model = tiny_models.build("llama")
    state = torch.get_rng_state()
    prove(model, plan_for(model, TopK(k=4)), None, "causal-lm")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("vit", "image-classification"),
        ("dinov2", "image-classification"),
        ("clip", "image-text"),
        ("siglip", "image-text"),
        ("whisper", "speech-seq2seq"),
    ],
)
def test_images_and_sound_are_proven_too(name: str, task: str) -> None:
    model = EVERY[name].build()
    checks = prove(model, plan_for(model, TopK(k=64)), None, task)
    assert all(check.passed for check in checks)
    assert not any(check.skipped for check in checks)
    expected = [check for check in EVERY_CHECK if "padding" not in check]
    assert [check.name for check in checks] == (expected if name == "whisper" else expected[:3])


SOUND = {name: EVERY[name].build for name in ("wav2vec2", "hubert")}


@pytest.mark.parametrize("name", SOUND)
def test_padding_of_sound_is_proven(name: str) -> None:
    model = SOUND[name]()
    checks = prove(model, plan_for(model, TopK(k=64)), None, "speech-ctc")
    assert [check.name for check in checks] == EVERY_CHECK[:4]
    assert checks[-1].error is not None


@pytest.mark.parametrize("name", SOUND)
def test_a_lost_padding_of_sound_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = SOUND[name]()
    lose_the_mask_builder(monkeypatch)
    with pytest.raises(ProofFailedError, match="padding and batching do not matter: failed for"):
        prove(model, plan_for(model, TopK(k=64)), None, "speech-ctc")


@pytest.mark.parametrize(("name", "task"), [("vit", "image-classification"), ("whisper", "speech-seq2seq")])
def test_a_method_that_drops_a_key_of_an_image_or_a_sound_is_found(name: str, task: str) -> None:
    model = EVERY[name].build()
    with pytest.raises(ProofFailedError, match="keeping all equals the dense model: failed for"):
        prove(model, plan_for(model, KeepsTooFew(k=4)), None, task)


def test_an_encoder_that_takes_no_cache_is_told_of_none() -> None:
    """That of Switch Transformers raises an error where it is."""
    model = feed_forward_models.make("switch")
    assert [check.name for check in prove(model, plan_for(model, TopK(k=64)), None, "seq2seq-lm")] == EVERY_CHECK


def test_several_end_tokens() -> None:
    model = tiny_models.build("llama")
    model.config.eos_token_id = [2, 3]
    assert all(check.passed for check in prove(model, plan_for(model, TopK(k=4)), None, "causal-lm"))


def test_a_model_with_few_positions() -> None:
    model = tiny_models.build("gpt2")
    small = type(model)(type(model.config)(**{**model.config.to_dict(), "n_positions": 20})).eval()
    assert all(check.passed for check in prove(small, plan_for(small, TopK(k=4)), None, "causal-lm"))


def lose_the_mask_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    without = {
        name: builder
        for name, builder in AttentionMaskInterface._global_mapping.items()
        if name != attention.ATTENTION_NAME
    }
    monkeypatch.setattr(AttentionMaskInterface, "_global_mapping", without)
    monkeypatch.setattr(AttentionMaskInterface, "register", lambda *arguments: None)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "t5", "bart"])
def test_a_lost_mask_builder_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_models.build(name)
    lose_the_mask_builder(monkeypatch)
    failed = fails(name, model, plan_for(model, TopK(k=4)))
    assert "padding and batching do not matter" in [check.name for check in failed]
    assert any(check.modules for check in failed)


@dataclass(frozen=True)
class KeepsTooFew(TopK):
    """Wrong in the dense limit: always drops a key."""

    def select(self, chunk: Chunk) -> Selection:
        visible = chunk.scores != -torch.inf
        return Selection(visible & (visible.cumsum(-1) > 1))


@dataclass(frozen=True)
class KeepsByPosition(TopK):
    """Fine in the dense limit, but the first columns of the batch are favoured, padded or not."""

    def select(self, chunk: Chunk) -> Selection:
        if self.keep == 1.0:
            return Selection(None)
        return Selection((chunk.scores != -torch.inf) & (torch.arange(chunk.low, chunk.high) % 3 == 0))


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_wrong_dense_limit_is_blamed_on_its_module(name: str) -> None:
    model = tiny_models.build(name)
    plan = plan_for(model, TopK(k=8))
    guilty = list(plan)[1]
    plan[guilty] = KeepsTooFew(k=8)
    failed = fails(name, model, plan)
    assert failed[0].name == "keeping all equals the dense model"
    assert failed[0].modules == (guilty,)
    assert failed[0].error is not None


def test_a_selection_that_depends_on_padding_is_found() -> None:
    model = tiny_models.build("llama")
    plan = plan_for(model, TopK(k=8))
    guilty = next(iter(plan))
    plan[guilty] = KeepsByPosition(k=8)
    failed = fails("llama", model, plan)
    assert failed[0].name == "padding and batching do not matter"
    assert failed[0].modules == (guilty,)


@dataclass(frozen=True)
class GivesNaN(TopK):
    """Not finite once it is sparse."""

    def attend(self, inputs: Any, **options: Any) -> Any:
        out, counts = super().attend(inputs, **options)
        return out * torch.nan if self.k else out, counts


def test_nan_fails() -> None:
    model = tiny_models.build("gpt2")
    plan = plan_for(model, TopK(k=8))
    guilty = list(plan)[-1]
    plan[guilty] = GivesNaN(k=8)
    failed = fails("gpt2", model, plan)
    assert failed[0].modules == (guilty,)
    assert failed[0].error == float("inf")


def test_a_module_that_is_never_called_is_named() -> None:
    model = tiny_models.build("llama")
    plan = plan_for(model, TopK(k=8))
    # A module that is there and does not take part in the forward pass.
    model.model.layers[1].forward = lambda hidden, **kwargs: hidden
    failed = fails("llama", model, plan)
    assert failed[0].name == "every planned module is called"
    assert failed[0].modules == ("model.layers.1.self_attn",)


def test_a_failed_proof_names_the_way_out() -> None:
    model = tiny_models.build("llama")
    with pytest.raises(
        ProofFailedError, match=r"--set 're:model\\.layers\\.\\d\+\\.self_attn=none' leaves the first and"
    ):
        prove(model, plan_for(model, KeepsTooFew(k=8)), None, "causal-lm")


def test_a_model_without_tokens_says_how_to_go_on() -> None:
    class Images(nn.Module):
        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return pixel_values

    with pytest.raises(NotPatchableError, match=r"Images takes no input_ids.*--no-verify"):
        prove(Images(), {}, None, "encoder")


def test_a_model_that_says_minus_one_takes_any_number_of_positions() -> None:
    model = tiny_models.build("t5")  # relative positions alone
    model.config.max_position_embeddings = -1
    assert len(prove(model, plan_for(model, TopK(k=4)), None, TASKS["t5"])) == len(EVERY_CHECK)
