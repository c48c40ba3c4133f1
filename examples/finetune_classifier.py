"""Fine-tune an encoder to tell whether a story says something, and write questions on which to judge it.

    python examples/finetune_classifier.py --output classifier                                # demo-bert
    python examples/finetune_classifier.py --model models/all-MiniLM-L6-v2 --output classifier
    sparsify eval classifier --dataset classifier/validation.jsonl

A pair is a generated story of about 220 words and a statement: "the job of anna is baker." Half of the statements stand
in the story. The others name the same person, and a value that the story does not have at all. OUTPUT is an ordinary
model folder; its validation.jsonl holds pairs that training has not seen.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
from hf_sparsify.commands.target import folder_of
from hf_sparsify.evaluation.demo.stories import LOOKUP_SENTENCES, LOOKUP_VALUES, Shape, make_story, words
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup

LABELS = ("entailment", "not_entailment")
SHORT = Shape(facts=1, mentions=(2, 3), fillers=(0, 1), names=3)  # about 50 words, which training starts with
LONG = Shape(mentions=(12, 14))  # about 220 words
SHORT_SHARE = 0.75  # of the steps


def make_pair(rng: random.Random, shape: Shape = LONG) -> dict[str, str]:
    """A story, a statement on one of its facts, and whether it is true."""
    story = make_story(rng, shape)
    fact = rng.choice([question for question in story.questions if question.name])
    label, value = rng.choice(LABELS), fact.answer
    if label == "not_entailment":
        told = set(words(story.context))
        value = rng.choice([other for other in LOOKUP_VALUES[fact.kind] if other not in told])
    statement = LOOKUP_SENTENCES[fact.kind].format(name=fact.name, value=value)
    return {"premise": story.context, "hypothesis": statement, "label": label}


def encode(tokenizer: Any, pairs: list[dict[str, str]]) -> dict[str, torch.Tensor]:
    """What the model reads, with the labels."""
    first, second = ([pair[part] for pair in pairs] for part in ("premise", "hypothesis"))
    inputs = tokenizer(first, second, truncation="only_first", max_length=512, padding=True, return_tensors="pt")
    return {**inputs, "labels": torch.tensor([LABELS.index(pair["label"]) for pair in pairs])}


def train(model: Any, tokenizer: Any, args: argparse.Namespace) -> None:
    """New pairs at every step; prints loss and accuracy on them."""
    rng = random.Random(args.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate)
    schedule = get_linear_schedule_with_warmup(optimizer, args.steps // 10, args.steps)
    model.train()
    losses, right = [], []
    for step in range(1, args.steps + 1):
        shape = SHORT if step <= SHORT_SHARE * args.steps else LONG
        inputs = encode(tokenizer, [make_pair(rng, shape) for _ in range(args.batch_size)])
        out = model(**inputs)
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(float(out.loss.detach()))
        right.append(float((out.logits.argmax(-1) == inputs["labels"]).float().mean()))
        if step % 20 == 0 or step == args.steps:
            last = slice(-20, None)
            print(
                f"step {step}: loss {sum(losses[last]) / len(losses[last]):.3f}, "
                f"{sum(right[last]) / len(right[last]):.1%} right",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo-bert", help="an encoder: demo-bert, a folder or a Hub name")
    parser.add_argument("--output", type=Path, required=True, help="the new model's folder")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--items", type=int, default=400, help="pairs in validation.jsonl")
    parser.add_argument("--seed", type=int, default=0, help="of training; the validation pairs are always the same")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(folder_of(args.model))
    names = dict(enumerate(LABELS))
    model = AutoModelForSequenceClassification.from_pretrained(
        folder_of(args.model), id2label=names, label2id={name: index for index, name in names.items()}
    )
    train(model, tokenizer, args)
    model.eval().save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    rng = random.Random("validation")
    lines = [json.dumps({"id": f"pair-{number}", **make_pair(rng)}) + "\n" for number in range(args.items)]
    (args.output / "validation.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
    print(f"wrote {args.output} with {args.items} pairs in validation.jsonl")


if __name__ == "__main__":
    main()
