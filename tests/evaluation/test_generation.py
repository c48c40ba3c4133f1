"""Greedy answers, the distributions along them, and what the meter counts of ended sequences."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny_models
import torch
from hf_sparsify.evaluation.generation import (
    TopMargins,
    answer_log_probs,
    answer_mask,
    decoder_start,
    eos_tokens,
    generate_greedy,
    kl_divergence,
)
from hf_sparsify.patcher.binding.modules import attention_modules
from hf_sparsify.patcher.binding.patching import apply_plan, remove_patch
from hf_sparsify.patcher.meter import Meter
from hf_sparsify.patcher.methods import TopK

FAMILIES = ("llama", "gemma2", "gpt2", "t5", "bart")


def prompts(name: str, lengths: tuple[int, ...] = (12, 8)) -> dict[str, torch.Tensor]:
    """Padded on the left for a decoder, else on the right."""
    generator = torch.Generator().manual_seed(3)
    ids, mask = torch.zeros(len(lengths), max(lengths), dtype=torch.int64), torch.zeros(len(lengths), max(lengths))
    for row, length in enumerate(lengths):
        place = slice(-length, None) if name in tiny_models.DECODERS else slice(0, length)
        ids[row, place] = torch.randint(5, tiny_models.VOCABULARY, (length,), generator=generator)
        mask[row, place] = 1
    return {"input_ids": ids, "attention_mask": mask.to(torch.int64)}


def one(inputs: dict[str, torch.Tensor], row: int) -> dict[str, torch.Tensor]:
    """A row of a batch, alone and without its padding."""
    real = inputs["attention_mask"][row].bool()
    return {name: tensor[row : row + 1, real] for name, tensor in inputs.items()}


def ending(model: Any, *tokens: int) -> Any:
    model.generation_config.eos_token_id = list(tokens)
    return model


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_greedy_is_the_argmax_step_by_step(name: str) -> None:
    model = ending(tiny_models.build(name), 1)
    inputs = one(prompts(name), 0)
    answer = generate_greedy(model, inputs, 6, pad_token_id=0)
    tokens = torch.tensor([[decoder_start(model)]]) if model.config.is_encoder_decoder else inputs["input_ids"]
    expected = []
    for _ in range(6):
        if model.config.is_encoder_decoder:
            logits = model(**inputs, decoder_input_ids=tokens).logits
        else:
            logits = model(input_ids=tokens).logits
        expected.append(int(logits[0, -1].argmax()))
        tokens = torch.cat([tokens, torch.tensor([expected[-1:]])], 1)
        if expected[-1] == 1:
            break
    assert answer.tolist() == [expected]


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_sampling_and_beams_of_the_model_are_switched_off(name: str) -> None:
    model = ending(tiny_models.build(name), 1)
    plain = generate_greedy(model, prompts(name), 5, pad_token_id=0)
    model.generation_config.update(do_sample=True, temperature=9.0, top_k=3, top_p=0.5, max_length=3)
    if name in tiny_models.ENCODER_DECODERS:
        model.generation_config.update(num_beams=4, early_stopping=True, length_penalty=2.0)
    before = model.generation_config.to_dict()
    assert torch.equal(generate_greedy(model, prompts(name), 5, pad_token_id=0), plain)
    assert model.generation_config.to_dict() == before


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_log_probs_are_those_of_generation(name: str) -> None:
    model = ending(tiny_models.build(name), 1)
    inputs = prompts(name)
    run = model.generate(
        **inputs, max_new_tokens=6, do_sample=False, output_logits=True, return_dict_in_generate=True, pad_token_id=0
    )
    start = 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    answers = run.sequences[:, start:]
    expected = torch.stack(run.logits, 1).float().log_softmax(-1)
    found = answer_log_probs(model, inputs, answers)
    mask = answer_mask(model, answers)
    assert found.shape == expected.shape
    assert torch.allclose(found[mask], expected[mask], atol=1e-4)
    assert torch.equal(found.argmax(-1)[mask], answers[mask])


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_padding_does_not_change_log_probs(name: str) -> None:
    model = ending(tiny_models.build(name), 1)
    inputs = prompts(name)
    answers = generate_greedy(model, inputs, 5, pad_token_id=0)
    both = answer_log_probs(model, inputs, answers)
    for row in range(2):
        alone = answer_log_probs(model, one(inputs, row), answers[row : row + 1])
        assert torch.allclose(both[row], alone[0], atol=1e-4)


def test_the_mask_ends_with_the_first_end_token() -> None:
    model = ending(tiny_models.build("llama"), 2, 3)
    answers = torch.tensor([[5, 6, 7, 8], [5, 2, 0, 0], [3, 3, 3, 3], [5, 6, 7, 2]])
    assert answer_mask(model, answers).sum(-1).tolist() == [4, 2, 1, 4]
    assert eos_tokens(model).tolist() == [2, 3]
    model.generation_config.eos_token_id = None
    assert eos_tokens(model).tolist() == []
    assert bool(answer_mask(model, answers).all())


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_margins_are_those_of_the_distributions(name: str) -> None:
    model = ending(tiny_models.build(name), 1)
    inputs, margins = prompts(name), TopMargins()
    answers = generate_greedy(model, inputs, 6, pad_token_id=0, margins=margins)
    assert torch.equal(answers, generate_greedy(model, inputs, 6, pad_token_id=0))
    mask = answer_mask(model, answers)
    best = answer_log_probs(model, inputs, answers, mask).topk(2, -1).values
    by_hand = (best[..., 0] - best[..., 1]).masked_fill(~mask, torch.inf).amin(-1)
    assert margins.smallest(mask) == pytest.approx(by_hand.tolist(), abs=1e-4)


def test_margins_by_hand() -> None:
    margins = TopMargins()
    for scores in ([[1.0, 5.0, 2.0], [0.0, 0.0, 9.0]], [[4.0, 4.5, 0.0], [7.0, 7.0, 7.0]]):
        tensor = torch.tensor(scores)
        assert margins(torch.zeros(2, 1, dtype=torch.int64), tensor) is tensor
    assert margins.smallest(torch.tensor([[True, True], [True, True]])) == [0.5, 0.0]
    assert margins.smallest(torch.tensor([[True, False], [True, False]])) == [3.0, 9.0], "what follows the end is none"


def test_kl_by_hand() -> None:
    dense, patched = torch.tensor([[[0.5, 0.5], [1 / 4, 3 / 4]]]), torch.tensor([[[0.9, 0.1], [1 / 4, 3 / 4]]])
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert kl_divergence(dense.log(), patched.log())[0].tolist() == pytest.approx([expected, 0])


@torch.no_grad()
def counted(name: str, inputs: dict[str, torch.Tensor], eos: tuple[int, ...]) -> tuple[Meter, torch.Tensor]:
    model = ending(tiny_models.build(name), *eos)
    patch, meter = apply_plan(model, {module.name: TopK(k=4) for module in attention_modules(model)}), Meter()
    with patch.metered(meter):
        answers = generate_greedy(model, inputs, 8, pad_token_id=0, meter=meter)
    remove_patch(model)
    assert meter.active is None
    return meter, answers


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_the_meter_does_not_count_what_ended_sequences_compute(name: str) -> None:
    inputs = prompts(name)
    _, free = counted(name, inputs, ())
    # An end token that the first answer reaches early and the second never.
    end = next(token for token in free[0, 1:4].tolist() if token not in free[1].tolist())
    together, answers = counted(name, inputs, (end,))
    mask = answer_mask(ending(tiny_models.build(name), end), answers)
    assert mask[0].sum() < mask[1].sum()
    alone = [counted(name, one(inputs, row), (end,))[0] for row in range(2)]
    for name_, module in together.modules.items():
        for field in ("rows", "visible", "kept", "long_rows", "long_kept", "v_rows", "v_rows_kept"):
            total = sum(getattr(meter.modules[name_], field) for meter in alone)
            assert getattr(module, field) == total, field


@pytest.mark.parametrize("name", FAMILIES)
def test_the_start_of_an_answer(name: str) -> None:
    model: Any = tiny_models.build(name)
    start = {"t5": 0, "bart": 2}.get(name)
    assert decoder_start(model) == start
    model.generation_config.decoder_start_token_id = None
    assert decoder_start(model) == (start if start is None else model.config.decoder_start_token_id)
