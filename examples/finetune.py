"""Train a small T5 from nothing with the transformers Trainer, dense and patched with top-k attention, side by side.

    python examples/finetune.py
    python examples/finetune.py --k 2 16 --seeds 0 --steps 100 --output /tmp/finetune
    python examples/finetune.py --compensation sdc --more 200

For each seed it trains one dense model and one model per k that is patched before its first step, all on the same
stories in the same order. It prints how many questions each of them answers right, and how many the dense model does
when it is patched after training. With --more, training then goes on for so many steps on other stories: of the dense
model as it is, which is patched at the end, and of copies of it that are patched first.
Compensation is none everywhere, unless told otherwise: what is dropped then counts for nothing and gets no gradient.
The architecture is that of demo-t5, of the T5 family. The questions ask what a short story names most often, so that
an answer rests on many words. One CPU thread is enough.
"""

from __future__ import annotations

import argparse
import copy
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import hf_sparsify
import torch
from hf_sparsify import TopK
from hf_sparsify.evaluation.demo.stories import POOL_QUESTIONS, POOL_VALUES
from hf_sparsify.patcher.methods.compensation import COMPENSATIONS
from train_demo_t5 import build_model, build_tokenizer
from transformers import (
    EvalPrediction,
    PreTrainedTokenizerFast,
    PrinterCallback,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

COUNTS = (4, 2, 1, 1)  # how often a story names its colours, and its animals
KINDS = ("colour", "animal")
TEST_SEED, TEST_STORIES, MORE_SEED = 5, 500, 500  # seeds of training are offset, so that no story is seen twice

DENSE, TRAINED, PATCHED = "trained dense", "trained with top-k", "trained dense, then patched"
MORE_TRAINED, MORE_PATCHED = "dense, patched, trained on with top-k", "dense, trained on, then patched"

Example = dict[str, list[int]]


def make_examples(tokenizer: PreTrainedTokenizerFast, seed: int, count: int) -> list[Example]:
    """A question about each of `count` stories, as token ids; the label is the answer alone."""
    rng = random.Random(seed)
    prompts, answers = [], []
    for number in range(count):
        named = {}
        for kind in KINDS:
            values = rng.sample(POOL_VALUES[kind], len(COUNTS))
            named[kind] = [value for value, times in zip(values, COUNTS, strict=True) for _ in range(times)]
        asked = KINDS[number % len(KINDS)]
        answers.append(named[asked][0])
        for values in named.values():
            rng.shuffle(values)
        sentences = (f"{colour} {animal}." for colour, animal in zip(*named.values(), strict=True))
        prompts.append(f"question: {POOL_QUESTIONS[asked]} context: {' '.join(sentences)}")
    ids, labels = tokenizer(prompts)["input_ids"], tokenizer.convert_tokens_to_ids(answers)
    return [{"input_ids": one, "labels": [label]} for one, label in zip(ids, labels, strict=True)]


def share_right(prediction: EvalPrediction) -> dict[str, float]:
    return {"right": float((prediction.predictions[:, 0] == prediction.label_ids[:, 0]).mean())}


def make_trainer(
    model: T5ForConditionalGeneration, data: list[Example], steps: int, seed: int, args: Any, output: str
) -> Trainer:
    tokenizer = build_tokenizer()
    options = TrainingArguments(
        output,
        max_steps=steps,
        per_device_train_batch_size=args.batch,
        per_device_eval_batch_size=100,
        learning_rate=args.rate,
        warmup_steps=steps // 10,
        seed=seed,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(
        model,
        options,
        data_collator=lambda several: dict(tokenizer.pad(several, return_tensors="pt")),
        train_dataset=data,
        compute_metrics=share_right,
        preprocess_logits_for_metrics=lambda logits, _: logits[0].argmax(-1),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def train(model: T5ForConditionalGeneration, name: str, steps: int, seed: int, args: Any, output: Path) -> Trainer:
    """Trains on stories that depend on seed and steps alone, and says how long it took."""
    data = make_examples(build_tokenizer(), seed + 1000, steps * args.batch)
    trainer = make_trainer(model, data, steps, seed, args, str(output / f"{name}-seed-{seed}"))
    start = time.perf_counter()
    trainer.train()
    print(f"seed {seed}, {name}: trained for {time.perf_counter() - start:.0f} s", flush=True)
    if args.output is not None:
        trainer.save_model()
    return trainer


def measure(seed: int, args: Any, test: list[Example], output: Path) -> dict[str, list[float]]:
    """The share of answers right of one seed, a number for each k, by arm."""
    methods = [TopK(k=k, compensation=args.compensation) for k in args.k]
    torch.manual_seed(seed)
    dense = build_model(len(build_tokenizer()))
    start = copy.deepcopy(dense.state_dict())
    trainer = train(dense, "dense", args.steps, seed, args, output)
    found = {DENSE: [right(trainer, test)] * len(methods), TRAINED: [], PATCHED: patched(trainer, methods, test)}
    trained = copy.deepcopy(dense)
    for method in methods:
        model = build_model(len(build_tokenizer()))
        model.load_state_dict(start)
        hf_sparsify.patch(model, method)
        found[TRAINED].append(right(train(model, f"k-{method.k}", args.steps, seed, args, output), test))
    if not args.more:
        return found
    seed += MORE_SEED
    found[MORE_PATCHED] = patched(train(dense, "dense-more", args.more, seed, args, output), methods, test)
    found[MORE_TRAINED] = []
    for method in methods:
        model = copy.deepcopy(trained)
        hf_sparsify.patch(model, method)
        found[MORE_TRAINED].append(right(train(model, f"k-{method.k}-more", args.more, seed, args, output), test))
    return found


def right(trainer: Trainer, test: list[Example]) -> float:
    return trainer.evaluate(test)["eval_right"]


def patched(trainer: Trainer, methods: list[TopK], test: list[Example]) -> list[float]:
    """What is right while the trained model is patched with each of some methods."""
    found = []
    for method in methods:
        with hf_sparsify.patch(trainer.model, method):
            found.append(right(trainer, test))
    return found


def spread(values: list[float]) -> str:
    """Mean and sample standard deviation, in percent."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.1f} ± {100 * deviation:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k", type=int, nargs="+", default=[2, 16], help="kept keys per row")
    parser.add_argument("--compensation", choices=COMPENSATIONS, default="none", help="for what top-k drops")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=120, help="of the optimizer, per model")
    parser.add_argument("--more", type=int, default=0, metavar="STEPS", help="then train on for so many steps")
    parser.add_argument("--batch", type=int, default=32, help="questions per step")
    parser.add_argument("--rate", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--output", type=Path, help="keep the trained models here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    test = make_examples(build_tokenizer(), TEST_SEED, TEST_STORIES)
    with tempfile.TemporaryDirectory() as scratch:
        runs = [measure(seed, args, test, args.output or Path(scratch)) for seed in args.seeds]
    arms = list(runs[0])
    print(f"\n| answers right, % | {' | '.join(arms)} |\n|---|{'---|' * len(arms)}")
    for place, k in enumerate(args.k):
        print(f"| k = {k} | {' | '.join(spread([run[arm][place] for run in runs]) for arm in arms)} |")


if __name__ == "__main__":
    main()
