"""Made-up recordings, and tiny random models of speech with their processors, saved to folders."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy
import soundfile
import torch
import transformers

RATE = 16000
LETTERS = "abcdefgh"
VOCABULARY = {token: place for place, token in enumerate(("<pad>", "<s>", "</s>", "<unk>", "|", *LETTERS))}
_LAYERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
_WAVE: dict[str, Any] = {
    **_LAYERS,
    "vocab_size": len(VOCABULARY),
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "conv_dim": [16, 16],
    "conv_stride": [16, 10],
    "conv_kernel": [40, 10],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "initializer_range": 0.5,
}
_SPECIAL = ("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|fr|>", "<|transcribe|>", "<|notimestamps|>")


def sound(seconds: float, seed: int = 0) -> numpy.ndarray:
    """float32 [samples] at RATE: a tone that rises, with noise."""
    draw = numpy.random.default_rng(seed)
    time = numpy.arange(round(seconds * RATE)) / RATE
    tone = numpy.sin(2 * numpy.pi * (200 + 400 * time + 50 * seed) * time)
    return (0.5 * tone + 0.1 * draw.standard_normal(len(time))).astype(numpy.float32)


def save_recordings(folder: Path, count: int = 4, *, rate: int = RATE, suffix: str = ".wav") -> Path:
    """Recordings of unlike lengths and speech.jsonl, whose path is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, lines = random.Random(0), []
    for number in range(count):
        name = f"r{number}{suffix}"
        soundfile.write(folder / name, sound(0.3 + 0.15 * number, number)[:: RATE // rate], rate)
        text = " ".join("".join(rng.choices(LETTERS, k=3)) for _ in range(2 + number % 2))
        lines.append(json.dumps({"id": f"u{number}", "audio": name, "text": text, "speaker": f"s{number % 3}"}))
    (folder / "speech.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "speech.jsonl"


def save_ctc(folder: Path, *, family: str = "Wav2Vec2", norm: str = "layer", mask: bool = True) -> Path:
    """A CTC model of about 100 frames a second; norm: feat_extract_norm; mask: whether its extractor makes one."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    model_class = getattr(transformers, f"{family}ForCTC")
    config = model_class.config_class(**_WAVE, feat_extract_norm=norm, do_stable_layer_norm=norm == "layer")
    model_class(config).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(VOCABULARY))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    extractor = transformers.Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=mask)
    transformers.Wav2Vec2Processor(extractor, tokenizer).save_pretrained(folder)
    return folder


def save_whisper(folder: Path) -> Path:
    """A Whisper that hears one second as 50 positions and writes letters."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    letters = {letter: place for place, letter in enumerate((*LETTERS, "Ġ"))}
    tokenizer = transformers.WhisperTokenizer(vocab=letters, merges=[], additional_special_tokens=list(_SPECIAL))
    tokens = {token: tokenizer.convert_tokens_to_ids(token) for token in _SPECIAL}
    end = tokens["<|endoftext|>"]
    config = transformers.WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=8,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=40,
        decoder_ffn_dim=40,
        max_source_positions=50,
        max_target_positions=40,
        init_std=0.5,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=tokens["<|startoftranscript|>"],
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = transformers.WhisperForConditionalGeneration(config)
    told = {
        "is_multilingual": True,
        "lang_to_id": {token: tokens[token] for token in ("<|en|>", "<|fr|>")},
        "task_to_id": {"transcribe": tokens["<|transcribe|>"]},
        "no_timestamps_token_id": tokens["<|notimestamps|>"],
        "max_length": 24,
        "_from_model_config": False,  # else loading drops what is only Whisper's, as GenerationConfig.update does
    }
    for name, value in told.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder)
    extractor = transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=1, sampling_rate=RATE)
    transformers.WhisperProcessor(extractor, tokenizer).save_pretrained(folder)
    return folder
