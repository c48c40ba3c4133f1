"""What the classification data sets share: texts and labels of a record, and a prompt that asks for the label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...errors import DataError
from ..fields import field, id_of, index_of, kind_of, optional_text, text_of
from ..items import Labelled
from ..prompts import CHAT, COMPLETION, UNIFIEDQA, Turn
from .choices import LEAD, lettered


def read(record: Any, where: str, default_id: str = "", *, fields: Sequence[str], labels: Sequence[str]) -> Labelled:
    """A record with its texts in the fields given. Of a pair one may be blank, as it is now and then in QQP."""
    texts = tuple(text_of(record, name, where) for name in fields)
    if fields and not any(text.strip() for text in texts):
        raise DataError(f"{where}: field '{fields[0]}' is blank")
    return Labelled(
        id=id_of(record, ("id", "idx"), default_id, where),
        texts=texts,
        label=label_index(record, where, labels),
        kind=optional_text(record, "kind", where),
    )


def label_index(record: Any, where: str, labels: Sequence[str]) -> int:
    """The label of a record, which has its index or its name."""
    label = field(record, "label", where)
    if isinstance(label, str):
        if label not in labels:
            raise DataError(f"{where}: field 'label' is {label!r}; the labels are {', '.join(labels)}")
        return labels.index(label)
    if isinstance(label, bool) or not isinstance(label, int):
        raise DataError(f"{where}: field 'label' must be a whole number or a name, not {kind_of(label)}")
    if label == -1:
        raise DataError(
            f"{where}: field 'label' is -1: the label is hidden, as it is in GLUE's test splits; use another split"
        )
    return index_of(record, "label", where, len(labels))


def prompt_for(passage: str, question: str, words: Sequence[str]) -> Callable[[Labelled, str], Turn]:
    """A prompt; `passage` and `question` have {text} and {text2} where an item's texts stand."""

    def prompt(item: Labelled, style: str) -> Turn:
        fields = item.fields()
        shown, asked = passage.format(**fields), question.format(**fields)
        if style in (CHAT, COMPLETION):
            return Turn(f"{shown}\nQuestion: {asked}", LEAD)
        if style == UNIFIEDQA:
            return Turn(rf"{asked} \n {lettered(words)} \n {shown}".lower())
        options = "\n".join(f"- {word}" for word in words)
        return Turn(f"{shown}\n\n{asked}\n\nOPTIONS:\n{options}")

    return prompt
