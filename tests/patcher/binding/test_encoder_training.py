"""Training through a patched encoder: what reaches the weights is the gradient of the patched model, padding or not."""

from __future__ import annotations

from collections.abc import Callable

import hf_sparsify
import pytest
import torch
from hf_sparsify import Clustered, ClusteredPlain, TopK
from hf_sparsify.patcher.methods import AttentionMethod
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

METHODS = [
    TopK(k=4),
    TopK(k=4, compensation="sdc+vmc"),
    ClusteredPlain(clusters=4),
    Clustered(clusters=4, k=4),
]
ALL_KEPT = [TopK(k=20), ClusteredPlain(clusters=20), Clustered(clusters=3, k=20)]
TOKENS = torch.randint(16, (2, 20), generator=torch.Generator().manual_seed(1))
LENGTHS = (20, 12)
PADDING_MASK = (torch.arange(20) < torch.tensor(LENGTHS).unsqueeze(1)).long()
VALUES = torch.tensor([1, 2])
STEP = 1e-7

by_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{method.name}, {method.describe()}")


def model(method: AttentionMethod | None = None, dropout: float = 0.0) -> BertForSequenceClassification:
    """In float64 and training mode, with weights large enough that rows are uneven."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=16,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=dropout,
        num_labels=3,
        pad_token_id=None,
        initializer_range=0.3,
    )
    made = BertForSequenceClassification(config).double().train()
    if method is not None:
        hf_sparsify.patch(made, method)
    return made


def loss(of: BertForSequenceClassification, rows: slice = slice(None), length: int = 20) -> Tensor:
    logits = of(input_ids=TOKENS[rows, :length], attention_mask=PADDING_MASK[rows, :length]).logits
    return torch.nn.functional.cross_entropy(logits, VALUES[rows], reduction="sum")


def gradient(
    of: BertForSequenceClassification, find: Callable[[BertForSequenceClassification], Tensor] = loss
) -> Tensor:
    """All of it in one vector."""
    of.zero_grad()
    find(of).backward()
    return torch.nn.utils.parameters_to_vector([parameter.grad for parameter in of.parameters()])


@by_method
def test_gradients_are_those_of_finite_differences(method: AttentionMethod) -> None:
    patched = model(method)
    found = gradient(patched)
    weights = torch.nn.utils.parameters_to_vector(patched.parameters()).detach()
    direction = torch.randn(len(weights), generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def at(distance: float) -> float:
        torch.nn.utils.vector_to_parameters(weights + distance * direction, patched.parameters())
        return loss(patched).item()

    measured = (at(STEP) - at(-STEP)) / (2 * STEP)
    assert found @ direction == pytest.approx(measured, rel=1e-6)
    assert abs(measured) > 1
    assert (found - gradient(model())).abs().max() > 1e-3  # and not those of the dense model


@pytest.mark.parametrize("method", ALL_KEPT, ids=lambda method: method.name)
def test_with_all_kept_gradients_are_the_dense_ones(method: AttentionMethod) -> None:
    torch.testing.assert_close(gradient(model(method)), gradient(model()), rtol=1e-9, atol=1e-12)


@by_method
def test_padding_changes_no_gradient(method: AttentionMethod) -> None:
    patched = model(method)
    alone = [
        gradient(patched, lambda of, row=row, length=length: loss(of, slice(row, row + 1), length))
        for row, length in enumerate(LENGTHS)
    ]
    torch.testing.assert_close(gradient(patched), sum(alone), rtol=1e-9, atol=1e-12)


@by_method
def test_dropout_is_drawn_anew_and_follows_the_seed(method: AttentionMethod) -> None:
    patched = model(method, dropout=0.5)

    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return gradient(patched)

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))
    assert drawn(0).isfinite().all()


@by_method
def test_checkpointing_changes_no_gradient(method: AttentionMethod) -> None:
    patched = model(method)
    patched.gradient_checkpointing_enable({"use_reentrant": False})
    torch.testing.assert_close(gradient(patched), gradient(model(method)), rtol=0, atol=0)
