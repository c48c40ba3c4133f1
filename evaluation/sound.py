"""Recorded sound: found and checked when a data set is read, decoded when a model is to hear it."""

from __future__ import annotations

import hashlib
import io
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from .fields import kind_of
from .speech_extra import require_speech

if TYPE_CHECKING:
    import numpy

LOWEST_RATE = 2000  # samples per second; below it there is no speech left


@dataclass(frozen=True)
class Sound:
    """Encoded sound. name: what messages call it. source: its file, or the bytes of one. sha256: of those bytes.

    samples: how many there are in each channel. rate: how many of them a second holds.
    """

    name: str
    source: Path | bytes = field(repr=False)
    sha256: str
    samples: int
    rate: int

    def samples_at(self, rate: int) -> int:
        """How many samples `decoded` gives."""
        return math.ceil(self.samples * rate / self.rate)

    def decoded(self, rate: int) -> numpy.ndarray:
        """float32 [samples] at another sampling rate, the mean of the channels.

        DataError if the file cannot be read any more or holds NaN.
        """
        import numpy
        import soundfile

        try:
            values, _ = soundfile.read(_opened(self.source), dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, OSError) as error:
            raise DataError(f"{self.name} cannot be read as sound: {_reason(error)}") from error
        mono = values.mean(1)
        if len(mono) < self.samples:
            raise DataError(f"{self.name} breaks off after {len(mono)} of its {self.samples} samples")
        if not numpy.isfinite(mono).all():
            raise DataError(f"{self.name} holds samples that are no finite numbers")
        if rate != self.rate:
            from scipy.signal import resample_poly

            shared = math.gcd(rate, self.rate)
            mono = resample_poly(mono, rate // shared, self.rate // shared)
        return mono.astype(numpy.float32)


def sound_of(value: Any, where: str) -> Sound:
    """The sound that a record names: a file's path, or {"path", "bytes"} as `datasets` has it undecoded.

    DataError that begins with `where` if there is no such file, or it is no sound, empty or of too low a rate.
    SparsifyError if what reads sound is not installed.
    """
    require_speech()
    named, content = (value.get("path"), value.get("bytes")) if isinstance(value, dict) else (value, None)
    if isinstance(content, bytes):
        name = str(named or "sound")
        return _checked(name, content, content, where)
    if not isinstance(named, str) or not named.strip():
        raise DataError(f"{where}: field 'audio' must name a file, not {kind_of(named)}")
    path = Path(named).expanduser()
    try:
        return _checked(named, path, path.read_bytes(), where)
    except FileNotFoundError as error:
        raise DataError(f"{where}: there is no file {named}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{where}: cannot read {named}: {_reason(error)}") from error


def _checked(name: str, source: Path | bytes, content: bytes, where: str) -> Sound:
    import soundfile

    if not content:
        raise DataError(f"{where}: {name} is empty")
    try:
        info = soundfile.info(io.BytesIO(content))
    except (soundfile.LibsndfileError, OSError) as error:
        raise DataError(f"{where}: {name} is no sound that can be read, such as WAV or FLAC") from error
    if not info.frames:
        raise DataError(f"{where}: {name} holds no samples")
    if info.samplerate < LOWEST_RATE:
        raise DataError(f"{where}: {name} has {info.samplerate} samples per second, too few for speech")
    return Sound(name, source, hashlib.sha256(content).hexdigest(), info.frames, info.samplerate)


def _opened(source: Path | bytes) -> Any:
    return io.BytesIO(source) if isinstance(source, bytes) else str(source)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
