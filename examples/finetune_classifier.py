"""Fine-tune an encoder to tell when most animals of a story came, and write stories on which to judge it.

    python examples/finetune_classifier.py --output classifier              # demo-bert, minutes
    python examples/finetune_classifier.py --model models/all-MiniLM-L6-v2 --learning-rate 1e-4 --output classifier
    sparsify eval classifier --dataset classifier/validation.jsonl

A generated story of about 220 words mentions some thirteen animals, each at one of six times; the label is the time
that is named most often, by two mentions or more. OUTPUT is an ordinary model folder; its validation.jsonl holds
stories that training has not seen. Training starts with shorter stories, which cost less.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
from hf_sparsify.commands.target import folder_of
from hf_sparsify.evaluation.demo.stories import POOL_VALUES, Shape, make_story
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup

KIND = "time"
LABELS = POOL_VALUES[KIND]
SHORT = Shape(facts=1, mentions=(2, 5), fillers=(0, 1), names=3)
LONG = Shape(mentions=(12, 14))
SHORT_SHARE = 0.6  # of the steps


def make_example(rng: random.Random, shape: Shape = LONG) -> dict[str, str]:
    """A story and its label."""
    story = make_story(rng, shape)
    return {"text": story.context, "label": next(asked.answer for asked in story.questions if asked.kind == KIND)}


def encode(tokenizer: Any, examples: list[dict[str, str]]) -> dict[str, torch.Tensor]:
    """What the model reads, with the labels."""
    texts = [example["text"] for example in examples]
    inputs = tokenizer(texts, truncation=True, max_length=512, padding=True, return_tensors="pt")
    return {**inputs, "labels": torch.tensor([LABELS.index(example["label"]) for example in examples])}


def train(model: Any, tokenizer: Any, args: argparse.Namespace) -> None:
    """New stories at every step; prints loss and accuracy on them."""
    rng = random.Random(args.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate)
    schedule = get_linear_schedule_with_warmup(optimizer, args.steps // 10, args.steps)
    model.train()
    losses, right = [], []
    for step in range(1, args.steps + 1):
        shape = SHORT if step <= SHORT_SHARE * args.steps else LONG
        inputs = encode(tokenizer, [make_example(rng, shape) for _ in range(args.batch_size)])
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
            mean_loss, share = sum(losses[last]) / len(losses[last]), sum(right[last]) / len(right[last])
            print(f"step {step}: loss {mean_loss:.3f}, {share:.1%} right", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo-bert", help="an encoder: demo-bert, a folder or a Hub name")
    parser.add_argument("--output", type=Path, required=True, help="the new model's folder")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--items", type=int, default=400, help="stories in validation.jsonl")
    parser.add_argument("--seed", type=int, default=0, help="of training; the validation stories are always the same")
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
    lines = [json.dumps({"id": f"story-{number}", **make_example(rng)}) + "\n" for number in range(args.items)]
    (args.output / "validation.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
    print(f"wrote {args.output} with {args.items} stories in validation.jsonl")


if __name__ == "__main__":
    main()
