"""What is timed is the same pass for every contender, and the pass that generating makes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hf_sparsify.benchmark.workload import Workload, workload
from hf_sparsify.patcher.binding.growing_cache import cache_argument
from tiny_models import VOCABULARY, build


def tokens(batch: int = 2, length: int = 20) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(0))


def seen_lengths(work: Workload) -> list[tuple[int, int]]:
    """(queries, keys) of each pass through the attention of the last layer of a causal model."""
    found: list[tuple[int, int]] = []
    layer = work.model.model.layers[-1].self_attn

    def note(module: Any, args: Any, kwargs: Any) -> None:
        cached = kwargs[cache_argument(layer)].get_seq_length(layer.layer_idx)
        found.append((kwargs["hidden_states"].shape[1], cached + kwargs["hidden_states"].shape[1]))

    handle = layer.register_forward_pre_hook(note, with_kwargs=True)
    work.run()
    handle.remove()
    return found


def test_a_causal_model_reads_a_prompt_and_then_token_by_token() -> None:
    work = workload(build("llama"), "causal-lm", tokens(), 3)
    assert (work.phases, work.prompt) == (("prefill", "decode"), 17)
    assert (work.passes("prefill"), work.passes("decode")) == (17, 3)
    assert seen_lengths(work) == [(17, 17), (1, 18), (1, 19), (1, 20)]


@pytest.mark.parametrize(("family", "task"), [("llama", "causal-lm"), ("t5", "seq2seq-lm"), ("bart", "seq2seq-lm")])
def test_two_phases_with_their_seconds(family: str, task: str) -> None:
    found = workload(build(family), task, tokens(), 3).run()
    assert list(found) == ["prefill", "decode"]
    assert all(seconds > 0 for seconds in found.values())


def test_an_encoder_only_reads() -> None:
    work = workload(build("bert"), "encoder", tokens(), 3)
    assert list(work.run()) == ["forward"]
    assert work.prompt == 20


def test_no_new_tokens_leave_the_prompt() -> None:
    work = workload(build("llama"), "causal-lm", tokens(), 0)
    assert (work.phases, work.prompt) == (("prefill",), 20)
    work.warm_up()
    assert list(work.run()) == ["prefill"]


def test_warm_up_is_short() -> None:
    work = workload(build("llama"), "causal-lm", tokens(1, 60), 30)
    passed: list[int] = []
    handle = work.model.register_forward_pre_hook(
        lambda module, args, kwargs: passed.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    work.warm_up()
    handle.remove()
    assert sum(passed) <= 10


def test_seconds_are_of_the_phases_between_them() -> None:
    times = iter([10.0, 13.0, 20.0])
    assert workload(build("llama"), "causal-lm", tokens(), 2).run(lambda: next(times)) == {
        "prefill": 3.0,
        "decode": 7.0,
    }
