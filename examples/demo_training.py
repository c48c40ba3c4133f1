"""What the training scripts of the demo models share: curriculum, auxiliary losses, the loop, saving.

With glibc, MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=8000000000 in the environment makes a step faster (memory is not
given back and asked for again).
"""

import argparse
import random
import shutil
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from hf_sparsify.evaluation.demo import stories
from hf_sparsify.evaluation.demo.stories import FULL, LOOKUP_VALUES, Shape, Story
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

CURRICULUM = (
    Shape(facts=2, mentions=(4, 6), fillers=(0, 1), names=3),
    Shape(facts=2, mentions=(10, 14), fillers=(1, 3), names=4),
    FULL,
)
ADVANCE_AT = 0.85  # share of answers right, averaged over about the last 50 batches
NAME_OFFSET = -2  # from a value to the name it belongs to, in every fact sentence
KEY_WORDS = {
    "likes": "like",
    "plays": "play",
    "password": "password",
    "job": "job",
    "colour": "colour",
    "animal": "animal",
    "place": "where",
    "time": "when",
}
DEV_SEED = 5
DEV_STORIES = 60
STORIES_AT_A_TIME = 4


@dataclass
class Step:
    """What one batch gives: the losses, and for each question its kind and whether it was answered right."""

    answer: torch.Tensor
    guidance: torch.Tensor
    naming: torch.Tensor
    kinds: list[str]
    right: torch.Tensor  # bool [questions]


class Learner(Protocol):
    """A model in training. head: auxiliary layers that are thrown away."""

    model: Any
    tokenizer: PreTrainedTokenizerFast
    head: nn.Module

    def step(self, several: list[Story]) -> Step:
        """A forward pass over all questions of some stories."""
        ...


def word_tokenizer(vocabulary: list[str], unknown: str, **options: Any) -> PreTrainedTokenizerFast:
    """One token per word or punctuation mark, lower-cased."""
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=unknown))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=unknown,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
        **options,
    )


def positions_of(
    words: list[list[str]], ids: torch.Tensor, inside: torch.Tensor, tokenizer: PreTrainedTokenizerFast
) -> torch.Tensor:
    """bool [questions, length]: where ids holds one of its question's words, inside the given positions."""
    wanted = torch.zeros(len(words), len(tokenizer), dtype=torch.bool)
    for row, some in enumerate(words):
        wanted[row, tokenizer.convert_tokens_to_ids(some)] = True
    return wanted.gather(1, ids) & inside


def lookup_value_ids(tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """The tokens of all values that a look-up may ask for."""
    values = [value for some in LOOKUP_VALUES.values() for value in some]
    return torch.tensor(tokenizer.convert_tokens_to_ids(values))


def pointing_loss(weights: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy between attention weights [questions, heads, keys] and the target's weights [questions, keys]."""
    spread = target / target.sum(1, keepdim=True).clamp_min(1)
    return -(spread[:, None] * weights.clamp_min(1e-6).log()).sum(-1).mean()


class NameHead(nn.Module):
    """From the state of a look-up value, name the person that it belongs to."""

    value_ids: torch.Tensor

    def __init__(self, tokenizer: PreTrainedTokenizerFast, d_model: int) -> None:
        super().__init__()
        self.register_buffer("value_ids", lookup_value_ids(tokenizer))
        self.out = nn.Linear(d_model, len(tokenizer))

    def forward(self, states: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        rows, positions = torch.isin(ids, self.value_ids).nonzero(as_tuple=True)
        return nn.functional.cross_entropy(self.out(states[rows, positions]), ids[rows, positions + NAME_OFFSET])


def learning_rate(peak: float, step: int, progress: float) -> float:
    """Warm-up over 100 steps, constant, then linear to nothing over the last four fifths of the time."""
    return peak * min(1.0, (step + 1) / 100) * min(1.0, (1.0 - progress) / 0.8 + 0.002)


def train(learner: Learner, args: argparse.Namespace) -> None:
    """Trains for args.minutes on fresh stories; the checkpoint that is best on stories of its own is saved."""
    rng, dev_rng = random.Random(args.seed + 1000), random.Random(DEV_SEED)
    dev = [stories.make_story(dev_rng) for _ in range(DEV_STORIES)]
    parameters = [*learner.model.parameters(), *learner.head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=args.rate, betas=(0.9, 0.98), weight_decay=0.01)
    level = len(CURRICULUM) - 1 if args.resume else 0
    running, best, step, level_start = 0.0, 0.0, 0, 0
    start = last_report = time.monotonic()
    while (progress := (time.monotonic() - start) / (args.minutes * 60)) < 1:
        made = learner.step([stories.make_story(rng, CURRICULUM[level]) for _ in range(args.stories)])
        weight = args.guidance * min(1.0, (1.0 - progress) / 0.2)  # the end is for the answers alone
        optimizer.param_groups[0]["lr"] = learning_rate(args.rate, step, progress)
        optimizer.zero_grad()
        (made.answer + weight * (made.guidance + made.naming)).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

        step += 1
        running += (made.right.float().mean().item() - running) * max(0.02, 1 / (step - level_start))
        if running > ADVANCE_AT and step - level_start >= 50 and level < len(CURRICULUM) - 1:
            level, running, level_start = level + 1, 0.0, step
        if step % 50 == 0:
            losses = "  ".join(f"{name} {getattr(made, name).item():.3f}" for name in ("answer", "guidance", "naming"))
            minutes = (time.monotonic() - start) / 60
            print(f"{minutes:5.1f} min  step {step}  level {level}  right {running:.3f}  {losses}", flush=True)
        if level == len(CURRICULUM) - 1 and time.monotonic() - last_report > 60 * args.every:
            best = report(learner, dev, best, args.output)
            last_report = time.monotonic()
    report(learner, dev, best, args.output)


def report(learner: Learner, dev: list[Story], best: float, output: Path) -> float:
    """Measures on stories kept for this, prints, and saves the model if it is the best so far."""
    right: dict[str, list[bool]] = defaultdict(list)
    with torch.no_grad():
        for start in range(0, len(dev), STORIES_AT_A_TIME):
            made = learner.step(dev[start : start + STORIES_AT_A_TIME])
            for kind, hit in zip(made.kinds, made.right.tolist(), strict=True):
                right[kind].append(hit)
    kinds = {kind: sum(hits) / len(hits) for kind, hits in right.items()}
    overall = sum(kinds.values()) / len(kinds)
    print(f"dev {overall:.3f}  " + "  ".join(f"{kind} {value:.2f}" for kind, value in kinds.items()), flush=True)
    if overall >= best:
        save(learner.model, learner.tokenizer, output)
    return max(best, overall)


def save(model: Any, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Writes next to the output and swaps, so that a reader never sees half a model."""
    fresh, old = output.with_name(output.name + ".new"), output.with_name(output.name + ".old")
    shutil.rmtree(fresh, ignore_errors=True)
    model.save_pretrained(fresh)
    (fresh / "model.safetensors").chmod(0o644)
    tokenizer.backend_tokenizer.no_padding()  # the last call's padding is no part of the tokenizer
    tokenizer.save_pretrained(fresh)
    if output.exists():
        output.rename(old)
    fresh.rename(output)
    shutil.rmtree(old, ignore_errors=True)


def arguments(description: str | None, minutes: float) -> argparse.Namespace:
    """The options that all training scripts take; also fixes seed and threads."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=minutes, help="wall-clock time to train for")
    parser.add_argument("--output", type=Path, required=True, help="where the best model is written")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", type=Path, help="start from this model, at full story length")
    parser.add_argument("--rate", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--stories", type=int, default=4, help="stories per batch, each with 8 questions")
    parser.add_argument("--guidance", type=float, default=0.5, help="weight of the auxiliary losses")
    parser.add_argument("--every", type=float, default=3, help="minutes between measurements")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    return args
