"""Models that see or hear: what they take is no text, or not text alone."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch import Tensor
from transformers import PreTrainedModel

from .encoder_decoders import BART, MODES
from .family import SIZES, TEXT, Family, Inputs, decoder_ids, text

_IMAGE: dict[str, Any] = {**SIZES, "image_size": 12, "patch_size": 4}
# Two convolutions: a position covers 20 samples and begins 8 after the one before.
_WAVE: dict[str, Any] = {
    **TEXT,
    "conv_dim": [16, 16],
    "conv_stride": [4, 2],
    "conv_kernel": [8, 4],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
}
_WHISPER: dict[str, Any] = {
    **{name: value for name, value in BART.items() if name != "max_position_embeddings"},
    "num_mel_bins": 8,
    "max_source_positions": 12,
    "max_target_positions": 40,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def _image(padding: str, length: int, batch: int) -> Inputs:
    return {"pixel_values": _random(batch, 3, 12, 12)}


def _image_and_text(padding: str, length: int, batch: int) -> Inputs:
    call = {**text(padding, length, batch), **_image(padding, length, batch)}
    end = length - 1 if padding != "right" else length - 5
    call["input_ids"][:, end] = TEXT["eos_token_id"]  # CLIP pools there
    return call


def _wave(padding: str, length: int, batch: int) -> Inputs:
    samples = 12 * length
    call = {"input_values": _random(batch, samples)}
    if padding != "none":
        call["attention_mask"] = torch.ones(batch, samples, dtype=torch.int64)
        call["attention_mask"][1, samples // 2 :] = 0
    return call


def _spectrogram(padding: str, length: int, batch: int) -> Inputs:
    return {"input_features": _random(batch, 8, 24), "decoder_input_ids": decoder_ids(batch)}


def _two_towers(name: str, model_class: str, paddings: tuple[str, ...], **fields: Any) -> Family:
    def make() -> PreTrainedModel:
        cls = getattr(hf, model_class)
        return cls(cls.config_class(text_config=TEXT, vision_config=_IMAGE, **fields))

    return Family(name, make, _image_and_text, paddings=paddings)


def _vision(name: str, model_class: str) -> Family:
    def make() -> PreTrainedModel:
        cls = getattr(hf, model_class)
        return cls(cls.config_class(**_IMAGE))

    return Family(name, make, _image, paddings=("none",))


def _wave_model(name: str, model_class: str) -> Family:
    def make() -> PreTrainedModel:
        cls = getattr(hf, model_class)
        return cls(cls.config_class(**_WAVE))

    return Family(name, make, _wave, paddings=("none", "right"), frame=(20, 8))


def _whisper() -> PreTrainedModel:
    return hf.WhisperForConditionalGeneration(hf.WhisperConfig(**_WHISPER))


_FAMILIES = (
    _vision("vit", "ViTForImageClassification"),
    _vision("deit", "DeiTForImageClassification"),
    _vision("dinov2", "Dinov2ForImageClassification"),
    _two_towers("clip", "CLIPModel", ("none", "right"), projection_dim=16),
    _two_towers("siglip", "SiglipModel", ("none",)),  # its text is what stands last, padding or not
    _wave_model("wav2vec2", "Wav2Vec2ForCTC"),
    _wave_model("hubert", "HubertForCTC"),
    Family("whisper", _whisper, _spectrogram, paddings=("none",), modes=MODES),
)

IMAGES_AND_SPEECH = {family.name: family for family in _FAMILIES}
