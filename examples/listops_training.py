"""A small BERT that learns ListOps, dense or patched: one training run, and what one of its steps needs."""

from __future__ import annotations

import multiprocessing
import random
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

import hf_sparsify
import torch
from hf_sparsify import Clustered, ClusteredPlain, TopK
from hf_sparsify.benchmark.peak import forget_peak, peak, used
from hf_sparsify.patcher.methods import AttentionMethod
from listops_data import DIGITS, VOCABULARY, Example, Grammar, batches
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, get_linear_schedule_with_warmup

DENSE = "dense"
METHODS = (DENSE, TopK.name, ClusteredPlain.name, Clustered.name)
MEASURED_STEPS = 3
REPORT_EVERY = 100  # steps
EVALUATION_BATCH = 100


@dataclass(frozen=True)
class Size:
    """An experiment: the task, the encoder, and how it is trained. k: of top-k. refined: keys per cluster."""

    grammar: Grammar = field(default_factory=Grammar)
    train: int = 96_000
    test: int = 2_000
    layers: int = 6
    d_model: int = 512
    heads: int = 8
    d_ff: int = 2048
    dropout: float = 0.1
    batch_size: int = 32
    steps: int = 5_000
    rate: float = 1e-4
    warmup: int = 1_000
    k: int = 128
    clusters: int = 100
    refined: int = 32

    def method(self, name: str) -> AttentionMethod | None:
        """The sparse method of a name in METHODS; None for dense."""
        methods: dict[str, AttentionMethod | None] = {
            DENSE: None,
            TopK.name: TopK(k=self.k),
            ClusteredPlain.name: ClusteredPlain(clusters=self.clusters),
            Clustered.name: Clustered(clusters=self.clusters, k=self.refined),
        }
        return methods[name]


SIZES = {
    "small": Size(
        grammar=Grammar(min_length=10, max_length=24, max_depth=3, max_arguments=5),
        train=40_000,
        layers=2,
        d_model=64,
        heads=4,
        d_ff=128,
        dropout=0.0,
        batch_size=64,
        steps=1_200,
        rate=2e-3,
        warmup=100,
        k=4,
        clusters=5,
        refined=4,
    ),
    "published": Size(),
}


class Learner:
    """An encoder in training, dense or patched with a method; equal seeds start from equal weights.

    batch: tokens int64 [B, n] of one length, values int64 [B].
    """

    def __init__(self, size: Size, method: str, seed: int, device: torch.device) -> None:
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=size.d_model,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            intermediate_size=size.d_ff,
            max_position_embeddings=size.grammar.max_length + 1,
            hidden_dropout_prob=size.dropout,
            attention_probs_dropout_prob=size.dropout,
            pad_token_id=None,  # nothing is padded, and the first token learns too
            num_labels=DIGITS,
        )
        self.device = device
        self.model = BertForSequenceClassification(config).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=size.rate, weight_decay=0.01)
        self.schedule = get_linear_schedule_with_warmup(self.optimizer, size.warmup, size.steps)
        if (sparse := size.method(method)) is not None:
            hf_sparsify.patch(self.model, sparse)

    def step(self, batch: Sequence[Example]) -> float:
        """One update; the loss before it."""
        self.model.train()
        tokens, values = _tensors(batch, self.device)
        loss = nn.functional.cross_entropy(self.model(input_ids=tokens).logits, values)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        return loss.item()

    @torch.no_grad()
    def accuracy(self, examples: Sequence[Example]) -> float:
        """The share of examples whose value is the likeliest."""
        self.model.eval()
        right = 0
        for batch in batches(examples, EVALUATION_BATCH, random.Random(0), whole=False):
            tokens, values = _tensors(batch, self.device)
            right += int((self.model(input_ids=tokens).logits.argmax(-1) == values).sum())
        return right / len(examples)


def _tensors(batch: Sequence[Example], device: torch.device) -> tuple[Tensor, Tensor]:
    tokens = torch.tensor([list(example.tokens) for example in batch], device=device)
    return tokens, torch.tensor([example.value for example in batch], device=device)


def train(
    size: Size,
    method: str,
    seed: int,
    device: torch.device,
    examples: Sequence[Example],
    test: Sequence[Example],
    report: Callable[[str], None],
) -> float:
    """Accuracy on test after size.steps updates. The order of the examples depends on the seed alone."""
    learner, rng = Learner(size, method, seed, device), random.Random(seed)
    done, losses = 0, []
    while done < size.steps:
        for batch in batches(examples, size.batch_size, rng):
            losses.append(learner.step(batch))
            done += 1
            if done % REPORT_EVERY == 0:
                report(f"{method}, seed {seed}: step {done} of {size.steps}, loss {statistics.mean(losses):.3f}")
                losses = []
            if done == size.steps:
                break
    return learner.accuracy(test)


def measure(size: Size, method: str, device: torch.device) -> tuple[int | None, float]:
    """Peak bytes above weights and optimizer in a training step at the greatest length, None where the device does not
    tell, and the seconds of the fastest of a few steps: of all threads on a CPU, where others may be busy too.

    Wants a process of its own: what another left behind would count.
    """
    learner, rng = Learner(size, method, seed=0, device=device), random.Random(0)
    learner.step([_noise(rng, size.grammar.min_length)])  # makes the optimizer's state, loads what the first step loads
    batch = [_noise(rng, size.grammar.max_length) for _ in range(size.batch_size)]
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    base = used(device)
    forget_peak(device)
    seconds = []
    for _ in range(MEASURED_STEPS):
        begin = clock()
        learner.step(batch)
        seconds.append(clock() - begin)
    most = peak(device)
    return None if most is None or base is None else max(most - base, 0), min(seconds)


def _noise(rng: random.Random, length: int) -> Example:
    """Tokens that mean nothing, at a length that few expressions have."""
    return Example(bytes(rng.choices(range(len(VOCABULARY)), k=length + 1)), 0)


def in_own_process(size: Size, method: str, device: torch.device) -> tuple[int | None, float]:
    """What measure finds, in a new process with as many threads."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, torch.set_num_threads, (torch.get_num_threads(),)) as pool:
        return pool.submit(measure, size, method, device).result()
