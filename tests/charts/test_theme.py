"""The look of charts: told apart by eyes of every kind, on white and on dark paper."""

from __future__ import annotations

from itertools import combinations

import pytest
from hf_sparsify.charts.theme import SERIES, SERIES_ON_DARK, SHAPES, config

# Machado, Oliveira & Fernandes 2009, "A Physiologically-based Model for Simulation of Color Vision Deficiency",
# severity 1.0, on linear RGB.
BLINDNESS = {
    "none": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}
Colour = tuple[float, float, float]


def linear(colour: str) -> Colour:
    shares = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares)
    return red, green, blue


def luminance(colour: Colour) -> float:
    return 0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2]


def contrast(left: str, right: str) -> float:
    """As in the Web Content Accessibility Guidelines."""
    dark, light = sorted(luminance(linear(colour)) for colour in (left, right))
    return (light + 0.05) / (dark + 0.05)


def seen(colour: str, eyes: str) -> Colour:
    """In Oklab, where equal distances look equally far."""
    parts = linear(colour)
    mixed = [sum(a * b for a, b in zip(row, parts, strict=True)) for row in BLINDNESS[eyes]]
    red, green, blue = (min(1.0, max(0.0, part)) for part in mixed)
    long = (0.4122214708 * red + 0.5363325363 * green + 0.0514459929 * blue) ** (1 / 3)
    middle = (0.2119034982 * red + 0.6806995451 * green + 0.1073969566 * blue) ** (1 / 3)
    short = (0.0883024619 * red + 0.2817188376 * green + 0.6299787005 * blue) ** (1 / 3)
    return (
        0.2104542553 * long + 0.7936177850 * middle - 0.0040720468 * short,
        1.9779984951 * long - 2.4285922050 * middle + 0.4505937099 * short,
        0.0259040371 * long + 0.7827717662 * middle - 0.8086757660 * short,
    )


@pytest.mark.parametrize("eyes", BLINDNESS)
@pytest.mark.parametrize("colours", [SERIES, SERIES_ON_DARK])
def test_the_first_four_series_look_different(colours: tuple[str, ...], eyes: str) -> None:
    for left, right in combinations(colours[:4], 2):
        apart = sum((a - b) ** 2 for a, b in zip(seen(left, eyes), seen(right, eyes), strict=True)) ** 0.5
        assert apart > 0.05, f"{left} and {right} look alike"


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read(dark: bool) -> None:
    made = config(dark=dark)
    for colour in (made["axis"]["labelColor"], made["title"]["subtitleColor"], made["legend"]["labelColor"]):
        assert contrast(colour, made["background"]) >= 4.5
    for style in ("dense", "budget", "recommended"):
        assert contrast(made["style"][style]["color"], made["background"]) >= 3


def test_light_and_dark_differ_in_colour_alone() -> None:
    light, dark = config(), config(dark=True)
    assert light["background"] != dark["background"]
    assert light.keys() == dark.keys()
    assert set(light["range"]["category"]) == set(dark["range"]["category"])
    assert len(light["range"]["category"]) == len(SHAPES)
