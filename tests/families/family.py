"""What a test has to know of a family: how to make a tiny model of it, how to call it, and what it can do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

VOCABULARY = 97
WINDOW = 5
PADDED = 4  # positions of the second sequence that are padding

IDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
TEXT: dict[str, Any] = {**IDS, **SIZES, "vocab_size": VOCABULARY, "max_position_embeddings": 64}

GQA: dict[str, Any] = {**TEXT, "num_key_value_heads": 2, "head_dim": 8}

Inputs = dict[str, Tensor]
Call = Callable[[str, int, int], Inputs]  # padding, length, batch


@dataclass(frozen=True)
class Family:
    """One family. Every model has 2 layers, or 2 in each stack, and 4 heads.

    make: the model as transformers initialises it. call: what its forward takes; padding "left"
    or "right" pads the second sequence, "none" passes no mask. paddings: those that it takes. width: of its random
    weights, large enough that attention is far from uniform. modes: the ways in which it generates. window: whether
    some of its layers see the last WINDOW keys alone. bidirectional: whether some take clustered attention.
    feed_forward: whether its feed-forward layers can be patched, as those of a mixture of experts cannot. frame: of the
    input, how many values make a position and how many come between two.
    """

    name: str
    make: Callable[[], PreTrainedModel]
    call: Call
    paddings: tuple[str, ...] = ("none", "left", "right")
    width: float = 0.3
    modes: tuple[str, ...] = ()
    window: bool = False
    bidirectional: bool = True
    feed_forward: bool = True
    frame: tuple[int, int] = (1, 1)

    def build(self) -> PreTrainedModel:
        """A random model in eval mode, always the same."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = self.make().eval()
        generator = torch.Generator().manual_seed(len(self.name) + sum(map(ord, self.name)))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim >= 2 or "sinks" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * self.width)
        return model

    def inputs(self, padding: str = "none", length: int = 12, batch: int = 2) -> Inputs:
        """What a forward call takes, always the same."""
        return self.call(padding, length, batch)

    def real_rows(self, call: Inputs, found: Tensor) -> Tensor:
        """bool, False for the rows of the scores `found` that are padding: [batch, positions], or [batch] where there
        is one row per sequence."""
        mask, (width, step) = call.get("attention_mask"), self.frame
        if mask is None or "decoder_input_ids" in call or found.ndim < 3:
            return torch.ones(found.shape[: min(2, found.ndim - 1)], dtype=torch.bool)
        return mask[:, width - 1 :: step].bool()


def text(padding: str, length: int, batch: int) -> Inputs:
    """Random tokens; the second sequence is padded if asked."""
    ids = torch.randint(5, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(7))
    if padding == "none":
        return {"input_ids": ids}
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[1, slice(0, PADDED) if padding == "left" else slice(length - PADDED, None)] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def positioned_text(padding: str, length: int, batch: int) -> Inputs:
    """As text, with the positions that go with the padding: a sequence means the same with and without it."""
    call = text(padding, length, batch)
    if padding != "none":
        call["position_ids"] = (call["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    return call


def decoder_ids(batch: int) -> Tensor:
    """What an encoder-decoder's decoder is fed, int64 [batch, 7]."""
    return torch.randint(5, VOCABULARY, (batch, 7), generator=torch.Generator().manual_seed(8))


def in_dtype_of(model: PreTrainedModel, call: Inputs) -> Inputs:
    """The same inputs in the precision of the model's weights."""
    return {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in call.items()}


def in_float64(model: PreTrainedModel) -> PreTrainedModel:
    """The model itself, its experts by a plain loop: the faster ways know no float64."""
    model.config._experts_implementation = "eager"
    return model.double()


@torch.no_grad()
def scores(model: PreTrainedModel, call: Inputs) -> Tensor:
    """What the model says: the logits or, without a head, the hidden states; one row per sequence or per position."""
    output = model(**in_dtype_of(model, call))
    if "start_logits" in output:
        return torch.stack([output.start_logits, output.end_logits], -1)
    for field in ("logits", "logits_per_image", "last_hidden_state"):
        if field in output:
            return output[field]
    raise ValueError(f"no scores known among {list(output)}")
