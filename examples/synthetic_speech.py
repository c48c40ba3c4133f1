"""Speech of made-up voices: letters are chords, and which letter a chord is depends on who says it.

A voice is a hum. Each utterance draws for each of its voices how far its chords are shifted, and the voice tells that
once, at the beginning, with a reference chord. A chord alone is therefore ambiguous: a model has to look up the
introduction of the voice that hums below it, hundreds of frames away. Words come from a small lexicon, noise is white.
"""

from __future__ import annotations

import csv
import random
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy
import soundfile

RATE = 8000  # samples per second
LETTERS = "abcdefghijkl"
LOW, HIGH = 4, 3  # letter = 3 x low + high
SHIFTS = 3
VOICES = 4
WORDS = 80
REFERENCE = 3400.0  # Hz, only in introductions


@dataclass(frozen=True)
class Utterance:
    """Sound float32 [samples] from -1 to 1, its words, and what is said from where on: (sample, letter, "|" or "")."""

    sound: numpy.ndarray
    text: str
    marks: tuple[tuple[int, str], ...]


def lexicon() -> list[str]:
    """The words: 2 to 5 letters, no letter twice in a row."""
    rng, words = random.Random(1), set[str]()
    while len(words) < WORDS:
        word = "".join(rng.choices(LETTERS, k=rng.randint(2, 5)))
        if all(first != second for first, second in pairwise(word)):
            words.add(word)
    return sorted(words)


def make_utterance(rng: random.Random, words: tuple[int, int], noise: tuple[float, float] = (0.1, 0.5)) -> Utterance:
    """One utterance of so many words, by two to four voices in turn. noise: its deviation, a tone's amplitude is 1."""
    shifts = {voice: rng.randrange(SHIFTS) for voice in rng.sample(range(VOICES), rng.randint(2, VOICES))}
    said = rng.choices(lexicon(), k=rng.randint(*words))
    parts: list[tuple[str, list[float], float]] = []  # mark, tones in Hz, seconds
    for voice, shift in shifts.items():
        parts.append(("", [*_chord(voice, shift, 0, 0), REFERENCE], rng.uniform(0.10, 0.16)))
        parts.append(("", [], rng.uniform(0.02, 0.05)))
    for place, word in enumerate(said):
        voice = rng.choice(list(shifts))
        for letter in word:
            low, high = divmod(LETTERS.index(letter), HIGH)
            parts.append((letter, _chord(voice, shifts[voice], low, high), rng.uniform(0.05, 0.09)))
        parts.append(("|" if place + 1 < len(said) else "", [], rng.uniform(0.04, 0.10)))
    return _spoken(parts, " ".join(said), rng, rng.uniform(*noise))


def _chord(voice: int, shift: int, low: int, high: int) -> list[float]:
    """The hum of a voice and two tones, in Hz."""
    return [150.0 + 110 * voice, 700.0 + 110 * (low + shift), 1500.0 + 160 * (high + shift)]


def _spoken(parts: list[tuple[str, list[float], float]], text: str, rng: random.Random, noise: float) -> Utterance:
    draw = numpy.random.default_rng(rng.getrandbits(32))
    sounds, marks, start = [], [], 0
    for mark, tones, seconds in parts:
        samples = int(seconds * RATE)
        time = numpy.arange(samples) / RATE
        sound = numpy.zeros(samples)
        for tone in tones:
            detuned = tone + draw.uniform(-15, 15)
            sound += draw.uniform(0.6, 1.2) * numpy.sin(2 * numpy.pi * (detuned * time + draw.uniform()))
        edge = numpy.minimum(1, numpy.minimum(time, time[::-1]) / 0.005)  # 5 ms, so that nothing clicks
        sounds.append(sound * edge)
        marks.append((start, mark))
        start += samples
    whole = numpy.concatenate(sounds)
    whole = whole + noise * draw.standard_normal(len(whole))
    return Utterance((whole / (numpy.abs(whole).max() + 1e-6)).astype(numpy.float32), text, tuple(marks))


def write_folder(folder: Path, utterances: list[Utterance]) -> Path:
    """An audio folder as `datasets` knows it: WAV files and metadata.csv, whose path is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "metadata.csv"
    with open(table, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["file_name", "text"])
        for number, utterance in enumerate(utterances):
            name = f"{number:04d}.wav"
            soundfile.write(folder / name, utterance.sound, RATE, subtype="PCM_16")
            rows.writerow([name, utterance.text])
    return table
