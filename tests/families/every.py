"""All families, by name. A list of families that are patched in another way joins here."""

from __future__ import annotations

from .decoders import DECODERS
from .encoder_decoders import ENCODER_DECODERS
from .encoders import ENCODERS
from .family import Family
from .images_and_speech import IMAGES_AND_SPEECH

EVERY: dict[str, Family] = {**DECODERS, **ENCODERS, **ENCODER_DECODERS, **IMAGES_AND_SPEECH}
