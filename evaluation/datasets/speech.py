"""Recorded speech with what is said in it."""

from __future__ import annotations

from typing import Any

from ...errors import DataError
from ..fields import field, id_of, optional_text, text_of
from ..items import Speech
from ..prompts import Turn
from ..sound import sound_of
from .base import SPEECH, Dataset

# Where data sets have the words, and who speaks: the first field that is there.
TEXT_FIELDS = ("text", "sentence", "transcription", "transcript")
SPEAKER_FIELDS = ("speaker_id", "speaker", "client_id")


def read(record: Any, where: str, default_id: str = "") -> Speech:
    """A record with sound and its text."""
    sound = field(record, "audio", where)
    name = next((name for name in TEXT_FIELDS if name in record), None)
    if name is None:
        raise DataError(f"{where}: there is no text next to the sound; the field may be {', '.join(TEXT_FIELDS)}")
    return Speech(
        id=id_of(record, ("id",), default_id, where),
        sound=sound_of(sound, where),
        text=text_of(record, name, where, blank=False),
        speaker=id_of(record, SPEAKER_FIELDS, "", where),
        kind=optional_text(record, "kind", where),
    )


def prompt(item: Speech, style: str) -> Turn:
    """Nothing is asked about speech."""
    return Turn(item.text)


ANY_SPEECH = Dataset(
    name="asr",
    summary="any recorded speech with its text; a folder of sound with metadata.csv",
    task=SPEECH,
    metric="word_accuracy",
    read=read,
    prompt=prompt,
    fields=frozenset({"audio"}),
)
LIBRISPEECH = Dataset(
    name="librispeech",
    summary="English books read aloud; the clean part",
    task=SPEECH,
    metric="word_accuracy",
    read=read,
    prompt=prompt,
    hub="openslr/librispeech_asr",
    config="clean",
    train="train.100",
)
