"""Answers that flipped, side by side, with the passage that they come from."""

from __future__ import annotations

from collections.abc import Sequence

from .found import Cell, Flip
from .parts import Flipped, Section, Table

SHOWN = 25  # of each direction; the CSV file holds all
FOLDED = 600  # characters from which on a passage is folded
Piece = tuple[str, bool]  # a part of a passage, and whether it is an answer


def flips_section(cell: Cell | None) -> Section | None:
    """The flipped answers of one recipe; None where right and wrong were not counted."""
    if cell is None or cell.accuracy is None or cell.accuracy.record["flips"] is None:
        return None
    lost = [flip for flip in cell.accuracy.flips if flip.lost]
    won = [flip for flip in cell.accuracy.flips if not flip.lost]
    counts = f"With {cell.label}, {len(lost)} of {cell.accuracy.items} answers that were right went wrong"
    said = [f"{counts}, and {len(won)} that were wrong went right."]
    if max(len(lost), len(won)) > SHOWN:
        said.append(f"The first {SHOWN} of each are shown; flips.csv holds all.")
    rows = tuple(
        (
            *("right to wrong" if flip.lost else "wrong to right", flip.id, flip.question, " / ".join(flip.gold)),
            *(flip.dense, flip.patched, flip.passage),
        )
        for flip in (*lost, *won)
    )
    header = ("direction", "item", "question", "gold", "dense", "patched", "passage")
    tables = (Table("flips", "Answers that flipped", header, rows),)
    first_lost, first_won = (tuple(map(_flipped, flips[:SHOWN])) for flips in (lost, won))
    return Section("flips", "Answers that flipped", tuple(said), lost=first_lost, won=first_won, files=tables)


def _flipped(flip: Flip) -> Flipped:
    return Flipped(flip, marked(flip.passage, [*flip.gold, flip.dense, flip.patched]), len(flip.passage) > FOLDED)


def marked(passage: str, answers: Sequence[str]) -> tuple[Piece, ...]:
    """The passage in pieces, every place where one of the answers stands marked, whatever its case."""
    lower, spans = passage.lower(), []
    # Some letters are two when they are small: then nothing is marked rather than the wrong place.
    for answer in {answer.strip().lower() for answer in answers} if len(lower) == len(passage) else ():
        start = lower.find(answer) if answer else -1
        while start >= 0:
            spans.append((start, start + len(answer)))
            start = lower.find(answer, start + len(answer))
    pieces, end = [], 0
    for start, stop in sorted(spans, key=lambda span: (span[0], -span[1])):
        if start < end:
            continue
        pieces += [(passage[end:start], False), (passage[start:stop], True)]
        end = stop
    return tuple(piece for piece in (*pieces, (passage[end:], False)) if piece[0])
