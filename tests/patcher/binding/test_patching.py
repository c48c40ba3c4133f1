"""The family matrix: patched models against their dense selves, in every way that a model is run."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hf_sparsify.errors import NotPatchableError, RecipeMismatchError, UnsupportedAttentionArgument, UsageError
from hf_sparsify.patcher.binding.attention import ATTENTION_NAME, PATCH_ATTRIBUTE
from hf_sparsify.patcher.binding.modules import AttentionModule, attention_modules
from hf_sparsify.patcher.binding.patching import MODEL_ATTRIBUTE, Patch, apply_plan, current_patch, remove_patch
from hf_sparsify.patcher.meter import Meter
from hf_sparsify.patcher.methods import AttentionMethod, TopK, TopTheta
from hf_sparsify.patcher.thresholds import ModuleThresholds
from tiny_models import DECODERS, ENCODER_DECODERS, FAMILIES, build, inputs, logits, real_positions
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel

WHOLE, FEW = TopK(k=64), TopK(k=3)
PADDINGS = ("none", "left", "right")
# Absolute positions count padding on the left as well there.
ONLY_RIGHT = ("bert", "bart")
GENERATORS = (*DECODERS, *ENCODER_DECODERS)


def everything(model: nn.Module, method: AttentionMethod) -> dict[str, AttentionMethod]:
    return {target.name: method for target in attention_modules(model)}


def patched(name: str, method: AttentionMethod) -> PreTrainedModel:
    model = build(name)
    apply_plan(model, everything(model, method))
    return model


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5)


def far(actual: Tensor, expected: Tensor) -> bool:
    """More apart than rounding could make them."""
    return float((actual - expected).abs().max()) > 1e-3


def state(model: nn.Module) -> dict[str, Any]:
    """All that patching may touch: configs, module attributes, state dict keys, hooks."""
    return {
        name: (
            getattr(getattr(module, "config", None), "_attn_implementation_internal", None),
            sorted(vars(module)),
            module.forward.__func__ if hasattr(module.forward, "__func__") else None,
            len(module._forward_hooks) + len(module._forward_pre_hooks),
        )
        for name, module in model.named_modules()
    }


# The whole row is the dense model


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", FAMILIES)
def test_whole_rows_are_dense_and_few_keys_are_not(name: str, padding: str) -> None:
    model, call = build(name), inputs(name, padding)
    real = real_positions(name, call)
    dense = logits(model, call)
    apply_plan(model, everything(model, WHOLE))
    close(logits(model, call)[real], dense[real])
    assert all(patch.calls > 0 for patch in current_patch(model).module_patches)
    remove_patch(model)
    apply_plan(model, everything(model, FEW))
    assert far(logits(model, call)[real], dense[real])


@pytest.mark.parametrize("name", FAMILIES)
def test_unpatching_restores_the_model_to_the_bit(name: str) -> None:
    model, call = build(name), inputs(name, "right")
    dense, before = logits(model, call), state(model)
    apply_plan(model, everything(model, FEW))
    assert state(model) != before
    logits(model, call)
    remove_patch(model)
    assert state(model) == before
    assert torch.equal(logits(model, call), dense)


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_and_their_names_are_untouched(name: str) -> None:
    model = build(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    apply_plan(model, everything(model, FEW))
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("name", FAMILIES)
def test_thresholds_far_below_every_score_are_dense_and_high_ones_are_not(name: str) -> None:
    model, call = build(name), inputs(name, "right")
    real = real_positions(name, call)
    dense = logits(model, call)
    for theta, sparse in ((-1e9, False), (1e9, True)):
        tables = {
            target.name: ModuleThresholds(torch.tensor([1.0]), torch.full((4, 1), theta), 1, 64)
            for target in attention_modules(model)
        }
        apply_plan(model, everything(model, TopTheta(k=2)), tables)
        out = logits(model, call)
        if sparse:
            assert far(out[real], dense[real])
        else:
            close(out[real], dense[real])
        remove_patch(model)


@pytest.mark.parametrize("name", ["llama", "gemma2", "t5"])
def test_bfloat16_models(name: str) -> None:
    model, call = build(name), inputs(name, "right")
    real = real_positions(name, call)
    exact = logits(model, call)[real]
    model = model.to(torch.bfloat16)
    dense = logits(model, call)[real].float()
    apply_plan(model, everything(model, WHOLE))
    out = logits(model, call)
    assert out.dtype == torch.bfloat16
    error, dense_error = (out[real].float() - exact).abs().mean(), (dense - exact).abs().mean()
    assert float(error) < 1.5 * float(dense_error)
    assert float(dense_error) < 0.1 * float(exact.std())


def test_float64_models() -> None:
    model, call = build("gpt2").double(), inputs("gpt2", "left")
    real = real_positions("gpt2", call)
    dense = logits(model, call)
    apply_plan(model, everything(model, WHOLE))
    torch.testing.assert_close(logits(model, call)[real], dense[real], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_masks_that_are_no_interval(name: str) -> None:
    model, call = build(name), inputs(name)
    call["attention_mask"] = torch.ones_like(call["input_ids"])
    call["attention_mask"][0, 4] = 0
    own = {**call, "attention_mask": torch.ones(2, 1, 12, 12, dtype=torch.bool).tril(1).triu(-2)}
    floats = {**own, "attention_mask": torch.zeros(2, 1, 12, 12).masked_fill(~own["attention_mask"], -1e30)}
    for given in (call, own, floats):
        dense = logits(model, given)
        real = torch.ones(2, 12, dtype=torch.bool)
        if given is call:
            real = call["attention_mask"].bool()
        apply_plan(model, everything(model, WHOLE))
        close(logits(model, given)[real], dense[real])
        remove_patch(model)
    assert far(logits(model, own), logits(model, call))


def test_packed_sequences_stay_apart() -> None:
    model, call = build("llama"), inputs("llama")
    model.config.use_cache = False  # transformers looks for packing only where there is no cache
    call["position_ids"] = torch.cat([torch.arange(5), torch.arange(7)]).expand(2, -1)
    dense = logits(model, call)
    apply_plan(model, everything(model, FEW))
    sparse = logits(model, call)
    close(sparse[:, 5:], logits(model, {"input_ids": call["input_ids"][:, 5:]}))
    assert far(sparse, dense)
    remove_patch(model)
    apply_plan(model, everything(model, WHOLE))
    close(logits(model, call), dense)


# Any part of a model


def chosen(model: nn.Module, part: str) -> list[AttentionModule]:
    found = attention_modules(model)
    return {
        "last layer": [m for m in found if m.layer == 1],
        "cross": [m for m in found if m.kind == "cross"],
        "encoder": [m for m in found if m.stack == "encoder"],
        "decoder self": [m for m in found if m.causal],
    }[part]


@pytest.mark.parametrize(
    ("name", "part"),
    [(name, "last layer") for name in FAMILIES]
    + [(name, part) for name in ENCODER_DECODERS for part in ("cross", "encoder", "decoder self")],
)
def test_only_the_named_modules_are_sparse(name: str, part: str) -> None:
    model, call = build(name), inputs(name, "right")
    real = real_positions(name, call)
    dense = logits(model, call)
    targets = chosen(model, part)
    assert 0 < len(targets) < len(attention_modules(model))
    seen: dict[str, Tensor] = {}

    def remember(target: AttentionModule) -> Any:
        return lambda module, args, output: seen.__setitem__(target.name, output[0])

    hooks = [m.module.register_forward_hook(remember(m)) for m in attention_modules(model)]
    logits(model, call)
    dense_seen = dict(seen)
    for method in (WHOLE, FEW):
        apply_plan(model, {target.name: method for target in targets})
        out = logits(model, call)
        if method is WHOLE:
            close(out[real], dense[real])
        else:
            assert far(out[real], dense[real])
            first = min(list(seen).index(target.name) for target in targets)
            source = call.get("attention_mask", torch.ones_like(call["input_ids"])).bool()
            for target_name in list(seen)[:first]:
                valid = source if seen[target_name].shape[1] == 12 else real
                close(seen[target_name][valid], dense_seen[target_name][valid])
            first_name = list(seen)[first]
            valid = source if seen[first_name].shape[1] == 12 else real
            assert far(seen[first_name][valid], dense_seen[first_name][valid])
        remove_patch(model)
    for hook in hooks:
        hook.remove()


# A sequence is the same however it is fed


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_sequence_alone_and_in_a_padded_batch(name: str, padding: str) -> None:
    if padding == "left" and name in ONLY_RIGHT:
        padding = "right"
    model, call = patched(name, FEW), inputs(name, padding)
    together = logits(model, call)[1]
    real = call["attention_mask"][1].bool()
    alone = {"input_ids": call["input_ids"][1:, real]}
    if name in ENCODER_DECODERS:
        alone["decoder_input_ids"] = call["decoder_input_ids"][1:]
        close(together, logits(model, alone)[0])
    else:
        close(together[real], logits(model, alone)[0])


@torch.no_grad()
def in_steps(model: PreTrainedModel, name: str, call: dict[str, Tensor], sizes: list[int]) -> Tensor:
    """Logits of a forward call that is fed through a cache, so many tokens at a time."""
    fed = "decoder_input_ids" if name in ENCODER_DECODERS else "input_ids"
    out, start, cache = [], 0, None if name in ENCODER_DECODERS else DynamicCache(config=model.config)
    for size in sizes:
        stop = start + size
        step = {**call, fed: call[fed][:, start:stop]}
        if name in DECODERS and "attention_mask" in call:
            step["attention_mask"] = call["attention_mask"][:, :stop]
            step["position_ids"] = call["position_ids"][:, start:stop]
        result = model(**step, past_key_values=cache, use_cache=True)
        out.append(result.logits)
        start, cache = stop, result.past_key_values
    assert start == call[fed].shape[1]
    return torch.cat(out, 1)


@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("method", [FEW, TopK(k=3, protect_first=1, protect_recent=1), TopTheta(k=3)], ids=str)
@pytest.mark.parametrize("name", GENERATORS)
def test_a_cache_filled_in_chunks_or_token_by_token(name: str, method: AttentionMethod, padding: str) -> None:
    model, call = build(name), inputs(name, padding)
    if isinstance(method, TopTheta):
        tables = {
            target.name: ModuleThresholds(torch.tensor([4.0, 9.0]), torch.tensor([[0.2, 0.6]] * 4), 4, 9)
            for target in attention_modules(model)
        }
        apply_plan(model, everything(model, method), tables)
    else:
        found = attention_modules(model)
        apply_plan(model, {m.name: method if m.causal else FEW for m in found})
    real = real_positions(name, call)
    whole = logits(model, call)
    length = whole.shape[1]
    for sizes in ([1] * length, [3, length - 3], [length - 1, 1], [2, 1, length - 3]):
        close(in_steps(model, name, call, sizes)[real], whole[real])


GENERATION: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "static cache": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
}


@pytest.mark.parametrize("mode", GENERATION)
@pytest.mark.parametrize("name", GENERATORS)
def test_generating_with_whole_rows_is_dense(name: str, mode: str) -> None:
    model = build(name)
    for padding in ("none", "left"):
        call = inputs(name, padding)
        call.pop("position_ids", None)
        call.pop("decoder_input_ids", None)
        options = {
            **GENERATION[mode],
            "do_sample": False,
            "min_new_tokens": 7,
            "max_new_tokens": 7,
            "pad_token_id": 0,
            "output_logits": True,
            "return_dict_in_generate": True,
        }
        dense = model.generate(**call, **options)
        apply_plan(model, everything(model, WHOLE))
        whole = model.generate(**call, **options)
        assert torch.equal(whole.sequences, dense.sequences)
        for ours, theirs in zip(whole.logits, dense.logits, strict=True):
            close(ours, theirs)
        remove_patch(model)
        apply_plan(model, everything(model, TopK(k=2)))
        assert far(model.generate(**call, **options).logits[1], dense.logits[1])
        remove_patch(model)


@pytest.mark.parametrize("name", GENERATORS)
def test_sparse_generation_does_not_depend_on_the_cache(name: str) -> None:
    model = patched(name, FEW)
    call = inputs(name, "left")
    call.pop("position_ids", None)
    call.pop("decoder_input_ids", None)
    options = {
        "do_sample": False,
        "min_new_tokens": 6,
        "max_new_tokens": 6,
        "pad_token_id": 0,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    runs = [model.generate(**call, **options, **GENERATION[mode]) for mode in ("no cache", "greedy", "static cache")]
    for run in runs[1:]:
        assert torch.equal(run.sequences, runs[0].sequences)
        for ours, theirs in zip(run.logits, runs[0].logits, strict=True):
            close(ours, theirs)


@pytest.mark.parametrize("method", [WHOLE, FEW], ids=str)
def test_later_tokens_never_change_earlier_logits(method: TopK) -> None:
    for name in DECODERS:
        model, call = patched(name, method), inputs(name)
        before = logits(model, call)
        call["input_ids"] = call["input_ids"].clone()
        call["input_ids"][:, 8:] = 5
        after = logits(model, call)
        assert torch.equal(after[:, :8], before[:, :8])
        assert far(after[:, 8:], before[:, 8:])


# The check that catches a missing mask builder


@pytest.mark.parametrize("name", FAMILIES)
def test_without_the_mask_builder_padding_would_be_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    padding = "right" if name in ONLY_RIGHT else "left"
    model, call = build(name), inputs(name, padding)
    real = real_positions(name, call)
    dense = logits(model, call)
    apply_plan(model, everything(model, WHOLE))
    close(logits(model, call)[real], dense[real])
    monkeypatch.delitem(AttentionMaskInterface._global_mapping, ATTENTION_NAME)
    assert far(logits(model, call)[real], dense[real])


def test_without_the_mask_builder_a_chunk_is_refused_and_a_window_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    model, call = patched("mistral", WHOLE), inputs("mistral")
    whole = logits(model, call)
    close(in_steps(model, "mistral", call, [4, 8]), whole)
    monkeypatch.delitem(AttentionMaskInterface._global_mapping, ATTENTION_NAME)
    assert far(logits(model, call), whole)
    with pytest.raises(NotPatchableError, match="without a mask"):
        in_steps(model, "mistral", call, [4, 8])


# Copies, files, training


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_deep_copy_is_patched_on_its_own(name: str) -> None:
    model, call = patched(name, FEW), inputs(name)
    sparse = logits(model, call)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin, call), sparse)
    assert current_patch(twin) is not current_patch(model)
    mine = {id(module) for module in twin.modules()}
    assert all(id(module) in mine for module, _ in current_patch(twin).modules)
    calls = [patch.calls for patch in current_patch(model).module_patches]
    logits(twin, call)
    assert [patch.calls for patch in current_patch(model).module_patches] == calls
    remove_patch(twin)
    assert torch.equal(logits(twin, call), logits(build(name), call))
    assert torch.equal(logits(model, call), sparse)
    remove_patch(model)
    assert torch.equal(logits(model, call), logits(twin, call))


@pytest.mark.parametrize("name", ["llama", "bart"])
def test_a_pickled_model_comes_back_patched_even_where_nothing_is_registered(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, call = patched(name, FEW), inputs(name)
    sparse = logits(model, call)
    content = pickle.dumps(model)
    monkeypatch.delitem(AttentionMaskInterface._global_mapping, ATTENTION_NAME)
    monkeypatch.delitem(AttentionInterface._global_mapping, ATTENTION_NAME)
    back = pickle.loads(content)  # noqa: S301
    assert torch.equal(logits(back, call), sparse)
    remove_patch(back)
    assert torch.equal(logits(back, call), logits(build(name), call))


@pytest.mark.parametrize("name", ["llama", "gemma2", "t5"])
def test_a_saved_patched_model_loads_plainly_and_dense(name: str, tmp_path: Path) -> None:
    model, call = build(name), inputs(name)
    dense, implementation = logits(model, call), model.config._attn_implementation_internal
    apply_plan(model, everything(model, FEW))
    model.save_pretrained(tmp_path)
    for file in tmp_path.glob("*.json"):
        assert "hf_sparsify" not in file.read_text()
    back = type(model).from_pretrained(tmp_path).eval()
    assert back.config._attn_implementation_internal == implementation
    assert torch.equal(logits(back, call), dense)


@pytest.mark.parametrize("name", ["llama", "bert", "t5"])
def test_gradients_of_whole_rows_are_those_of_the_dense_model(name: str) -> None:
    gradients = []
    for method in (None, WHOLE, FEW):
        model, call = build(name), inputs(name, "right")
        if method is not None:
            apply_plan(model, everything(model, method))
        output = model(**call)
        scores = output.start_logits if "start_logits" in output else output.logits
        scores[real_positions(name, call)].square().mean().backward()
        gradients.append({key: p.grad for key, p in model.named_parameters() if p.grad is not None})
    dense, whole, few = gradients
    assert whole.keys() == dense.keys() == few.keys()
    for key in dense:
        torch.testing.assert_close(whole[key], dense[key], rtol=1e-3, atol=1e-4 * float(dense[key].abs().max()) + 1e-6)
        assert torch.isfinite(few[key]).all()


def test_an_encoder_and_decoder_that_were_joined() -> None:
    def bert(**fields: Any) -> transformers.BertConfig:
        return transformers.BertConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=20, **fields
        )

    torch.manual_seed(0)
    model = transformers.EncoderDecoderModel(
        encoder=transformers.BertModel(bert()),
        decoder=transformers.BertLMHeadModel(bert(is_decoder=True, add_cross_attention=True)),
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(20)
    ids = torch.randint(1, 50, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    call = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids[:, :6]}
    dense, before = logits(model, call), state(model)
    apply_plan(model, everything(model, WHOLE))
    assert len(current_patch(model).modules) == 3
    close(logits(model, call), dense)
    assert all(patch.calls == 1 for patch in current_patch(model).module_patches)
    remove_patch(model)
    apply_plan(model, everything(model, TopK(k=1)))
    assert far(logits(model, call), dense)
    remove_patch(model)
    assert state(model) == before
    assert torch.equal(logits(model, call), dense)


# Counting, pausing


def test_metering_counts_what_the_closed_form_says() -> None:
    model, call = patched("llama", FEW), inputs("llama", "left")
    patch = current_patch(model)
    with patch.metered(Meter()) as meter:
        logits(model, call)
    logits(model, call)
    assert list(meter.modules) == [m.name for m in attention_modules(model)]
    for counted in meter.modules.values():
        assert counted.rows == 4 * (12 + 8)
        assert counted.visible == 4 * (12 * 13 // 2 + 8 * 9 // 2)
        assert counted.kept == 4 * ((1 + 2 + 3 * 10) + (1 + 2 + 3 * 6))
        assert counted.long_rows == 4 * (9 + 5)
    assert meter.total().rows == 2 * 4 * (12 + 8)


def test_metering_a_generation_counts_the_v_rows_of_every_step() -> None:
    model, call = patched("llama", FEW), inputs("llama")
    with current_patch(model).metered(Meter()) as meter:
        model.generate(**call, do_sample=False, min_new_tokens=4, max_new_tokens=4, pad_token_id=0)
    for counted in meter.modules.values():
        # Two sequences, two KV heads; three steps after the prefill.
        assert counted.v_rows == 2 * 2 * (13 + 14 + 15)
        assert 2 * 2 * 3 * 3 <= counted.v_rows_kept <= 2 * 2 * 2 * 3 * 3


def test_pausing_is_dense_and_ends_even_after_an_error() -> None:
    model, call = build("llama"), inputs("llama")
    dense = logits(model, call)
    patch = apply_plan(model, everything(model, FEW))
    sparse = logits(model, call)
    with patch.paused():
        assert not patch.active
        assert torch.equal(logits(model, call), dense)
    assert patch.active
    assert torch.equal(logits(model, call), sparse)
    with pytest.raises(KeyError), patch.paused():
        raise KeyError
    assert torch.equal(logits(model, call), sparse)


# Refusals change nothing


def sliced_heads(model: nn.Module) -> dict[str, ModuleThresholds]:
    last = attention_modules(model)[-1].name
    return {last: ModuleThresholds(torch.tensor([4.0]), torch.zeros(2, 1), 1, 64)}


@pytest.mark.parametrize(
    ("name", "plan", "error", "message"),
    [
        ("llama", {}, UsageError, "names no module"),
        (
            "llama",
            {"model.layers.0.self_attn": FEW, "model.layers.7.self_attn": FEW},
            RecipeMismatchError,
            r"layers\.7",
        ),
        ("llama", {"model.layers.0.mlp": FEW}, RecipeMismatchError, r"layers\.0\.mlp"),
        (
            "bert",
            {"bert.encoder.layer.0.attention.self": TopK(k=3, protect_recent=1)},
            NotPatchableError,
            "bidirectional",
        ),
        (
            "t5",
            {
                "decoder.block.0.layer.0.SelfAttention": TopK(k=3, protect_recent=1),
                "decoder.block.0.layer.1.EncDecAttention": TopK(k=3, protect_recent=1),
            },
            NotPatchableError,
            "EncDecAttention is cross-attention",
        ),
    ],
    ids=["empty plan", "unknown layer", "no attention", "recent keys both ways", "recent keys across"],
)
def test_a_refused_plan_changes_nothing(
    name: str, plan: dict[str, AttentionMethod], error: type[Exception], message: str
) -> None:
    model, call = build(name), inputs(name)
    dense, before = logits(model, call), state(model)
    with pytest.raises(error, match=message):
        apply_plan(model, plan)
    assert state(model) == before
    assert torch.equal(logits(model, call), dense)


@pytest.mark.parametrize("name", FAMILIES)
def test_thresholds_for_another_number_of_heads_are_refused(name: str) -> None:
    model = build(name)
    before = state(model)
    last = attention_modules(model)[-1].name
    with pytest.raises(RecipeMismatchError, match=f"{last} are for 2 heads, the module has 4"):
        apply_plan(model, everything(model, TopTheta(k=2)), sliced_heads(model))
    assert state(model) == before


@pytest.mark.parametrize(("model_class", "extra"), [("GPTJForCausalLM", {"rotary_dim": 4}), ("BloomForCausalLM", {})])
def test_a_family_outside_the_interface_is_refused(model_class: str, extra: dict[str, int]) -> None:
    cls = getattr(transformers, model_class)
    model = cls(cls.config_class(vocab_size=50, hidden_size=16, n_embd=16, n_layer=1, n_head=2, **extra))
    before = state(model)
    with pytest.raises(NotPatchableError, match=model_class):
        apply_plan(model, {"transformer.h.0.attn": FEW})
    assert state(model) == before


def test_patching_twice_and_unpatching_a_dense_model_are_refused() -> None:
    model, call = build("llama"), inputs("llama")
    with pytest.raises(UsageError, match="not patched"):
        remove_patch(model)
    patch = apply_plan(model, everything(model, FEW))
    sparse = logits(model, call)
    with pytest.raises(UsageError, match="already patched"):
        apply_plan(model, everything(model, WHOLE))
    assert current_patch(model) is patch
    assert torch.equal(logits(model, call), sparse)


def test_a_part_of_a_patched_model_is_not_patched_again() -> None:
    model, call = build("llama"), inputs("llama")
    dense = logits(model, call)
    apply_plan(model, everything(model, FEW))
    sparse = logits(model, call)
    with pytest.raises(UsageError, match="already patched"):
        apply_plan(model.model, everything(model.model, WHOLE))
    assert torch.equal(logits(model, call), sparse)
    remove_patch(model)
    assert torch.equal(logits(model, call), dense)


def test_a_second_model_on_the_config_of_a_patched_one_is_refused() -> None:
    first = build("llama")
    second = type(first)(first.config).eval()
    second.load_state_dict(first.state_dict())
    call = inputs("llama", "left")
    real = real_positions("llama", call)
    dense = logits(first, call)
    apply_plan(first, everything(first, FEW))
    sparse = logits(first, call)
    close(logits(second, call)[real], dense[real])
    # Unpatching either would switch the other off without a word.
    with pytest.raises(UsageError):
        apply_plan(second, everything(second, FEW))
    assert torch.equal(logits(first, call), sparse)
    remove_patch(first)
    assert torch.equal(logits(second, call), dense)


def test_an_argument_that_is_not_known_is_refused_with_the_name_of_the_module() -> None:
    model, call = patched("llama", FEW), inputs("llama")
    with pytest.raises(UnsupportedAttentionArgument, match=r"^model\.layers\.0\.self_attn hands .* some_new_argument"):
        model(**call, some_new_argument=torch.ones(1))
    assert model(**call, some_new_argument=None).logits.shape == (2, 12, 97)


def test_the_record_lives_on_the_model() -> None:
    model = build("bert")
    patch = apply_plan(model, everything(model, FEW))
    assert isinstance(patch, Patch)
    assert getattr(model, MODEL_ATTRIBUTE) is patch
    assert [p.name for p in patch.module_patches] == [m.name for m in attention_modules(model)]
    remove_patch(model)
    assert not hasattr(model, MODEL_ATTRIBUTE)
    assert not any(hasattr(module, PATCH_ATTRIBUTE) for module in model.modules())
