"""Train a small Wav2Vec2ForCTC on made-up speech (synthetic_speech.py), from nothing and with dense attention.

    python examples/train_ctc.py --steps 1500 --output speech
    sparsify patch speech/model --attention clustered --clusters 25
    sparsify eval --dataset speech/validation/metadata.csv

writes OUTPUT/model, an ordinary model folder with its processor, and OUTPUT/validation, WAV files with metadata.csv.
What lets it learn in minutes on one CPU thread, of which nothing but the weights is saved: the first convolution
starts as a bank of sines and cosines, and beside the CTC loss every frame is told its letter, less and less.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
from synthetic_speech import LETTERS, RATE, Utterance, make_utterance, write_folder
from torch import Tensor, nn
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
)

VOCABULARY = {"<pad>": 0, "|": 1, **{letter: 2 + place for place, letter in enumerate(LETTERS)}, "<unk>": 14}
KERNELS, STRIDES = (128, 3), (40, 2)  # a frame is 10 ms and sees 26 ms
WORDS, VALIDATION_WORDS = (4, 14), (18, 24)  # about 250 and 650 frames


def build_model(layers: int) -> Wav2Vec2ForCTC:
    """The model, its first convolution a bank of filters."""
    config = Wav2Vec2Config(
        vocab_size=len(VOCABULARY),
        pad_token_id=VOCABULARY["<pad>"],
        hidden_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=128,
        conv_dim=(64, 64),
        conv_kernel=KERNELS,
        conv_stride=STRIDES,
        conv_bias=True,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4,
        apply_spec_augment=False,
        layerdrop=0.0,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        final_dropout=0.0,
        ctc_loss_reduction="mean",
        ctc_zero_infinity=True,
    )
    model = Wav2Vec2ForCTC(config)
    bank = model.wav2vec2.feature_extractor.conv_layers[0].conv
    time_axis = torch.arange(KERNELS[0]) / RATE
    tones = torch.linspace(120, 3600, 32)[:, None]
    window = torch.hann_window(KERNELS[0])
    waves = [wave(2 * math.pi * tones * time_axis) * window / 16 for wave in (torch.sin, torch.cos)]
    bank.weight.data.copy_(torch.cat(waves)[:, None])
    return model


def build_processor(folder: Path) -> Wav2Vec2Processor:
    """Letters as tokens; sound of zero mean and unit variance."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "vocab.json"
    file.write_text(json.dumps(VOCABULARY))
    tokenizer = Wav2Vec2CTCTokenizer(str(file), bos_token=None, eos_token=None)
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=RATE, do_normalize=True, return_attention_mask=True)
    return Wav2Vec2Processor(extractor, tokenizer)


def frame_labels(utterance: Utterance, frames: int) -> Tensor:
    """The token in the middle of every frame, int64 [frames]."""
    starts = torch.tensor([start for start, _ in utterance.marks])
    tokens = torch.tensor([VOCABULARY[mark] if mark else 0 for _, mark in utterance.marks])
    hop, middle = math.prod(STRIDES), (KERNELS[0] + (KERNELS[1] - 1) * STRIDES[0]) // 2
    return tokens[torch.searchsorted(starts, torch.arange(frames) * hop + middle, right=True) - 1]


def losses(model: Wav2Vec2ForCTC, processor: Wav2Vec2Processor, batch: list[Utterance]) -> tuple[Tensor, Tensor]:
    """CTC, and cross-entropy of every frame."""
    sounds = [utterance.sound for utterance in batch]
    inputs = processor(sounds, sampling_rate=RATE, padding=True, return_tensors="pt")
    texts = processor.tokenizer([utterance.text for utterance in batch], padding=True, return_tensors="pt")
    labels = texts.input_ids.masked_fill(texts.attention_mask == 0, -100)
    made = model(**inputs, labels=labels)
    lengths = model._get_feat_extract_output_lengths(inputs["attention_mask"].sum(-1)).tolist()
    logits = [row[:length] for row, length in zip(made.logits, lengths, strict=True)]
    targets = [frame_labels(utterance, length) for utterance, length in zip(batch, lengths, strict=True)]
    return made.loss, nn.functional.cross_entropy(torch.cat(logits), torch.cat(targets))


def train(model: Wav2Vec2ForCTC, processor: Wav2Vec2Processor, args: argparse.Namespace) -> None:
    """Fresh utterances at every step; the rate rises for 5 % of them and then falls as a cosine.

    args.stop_after: ends there, at the rates of all args.steps. The configuration says how many steps were made in all.
    """
    rng = random.Random(args.seed)
    stop = args.steps if args.stop_after is None else min(args.stop_after, args.steps)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.rate, betas=(0.9, 0.98), weight_decay=0.01)
    start = time.monotonic()
    for step in range(stop):
        progress = step / args.steps
        batch = [make_utterance(rng, WORDS) for _ in range(args.batch)]
        ctc, frame = losses(model, processor, batch)
        rate = args.rate * min(progress / 0.05, (1 + math.cos(math.pi * progress)) / 2)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        (ctc * min(1.0, 2 * progress) + frame * max(0.0, 1.2 - progress)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        model.config.trained_steps = trained_steps(model) + 1
        if step % 25 == 0 or step + 1 == stop:
            minutes = (time.monotonic() - start) / 60
            print(f"{minutes:5.1f} min  step {step}  ctc {ctc.item():.3f}  frame {frame.item():.3f}", flush=True)
        if step % 100 == 99:
            save(model, processor, args.output)


def trained_steps(model: Wav2Vec2ForCTC) -> int:
    """How many steps the model has learnt for, in all commands together."""
    return getattr(model.config, "trained_steps", 0)


def save(model: Wav2Vec2ForCTC, processor: Wav2Vec2Processor, output: Path) -> None:
    """An ordinary model folder."""
    model.save_pretrained(output / "model")
    processor.save_pretrained(output / "model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--stop-after", type=int, metavar="N", help="end after N of them, at the rates of all")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, help="of weights and utterances (default: the steps made so far)")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--batch", type=int, default=8, help="utterances per step")
    parser.add_argument("--resume", action="store_true", help="go on with the model in OUTPUT; the rate rises again")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--validation", type=int, default=400, help="utterances to write for `sparsify eval`")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.resume:
        model = Wav2Vec2ForCTC.from_pretrained(args.output / "model").train()
        processor = Wav2Vec2Processor.from_pretrained(args.output / "model")
        args.seed = trained_steps(model) if args.seed is None else args.seed
    else:
        args.seed = args.seed or 0
        torch.manual_seed(args.seed)
        rng = random.Random(10_000)
        utterances = [make_utterance(rng, VALIDATION_WORDS) for _ in range(args.validation)]
        write_folder(args.output / "validation", utterances)
        model, processor = build_model(args.layers), build_processor(args.output / "model")
    train(model, processor, args)
    save(model.eval(), processor, args.output)


if __name__ == "__main__":
    main()
