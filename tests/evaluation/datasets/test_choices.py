"""Multiple-choice data sets: records as the Hub has them, and the prompts of every style."""

from __future__ import annotations

from typing import Any

import pytest
from hf_sparsify.errors import DataError
from hf_sparsify.evaluation.datasets import DATASETS
from hf_sparsify.evaluation.items import Choice
from hf_sparsify.evaluation.prompts import Turn

ARC: dict[str, Any] = {
    "id": "Owl_7",
    "question": "Which Animal flies?",
    "choices": {"text": ["a Cow", "an owl", "a pike"], "label": ["A", "B", "C"]},
    "answerKey": "B",
}
STEM = {**{key: ARC[key] for key in ("id", "choices", "answerKey")}, "question_stem": "An animal that flies is"}
COMMON = {**ARC, "question_concept": "fly"}
SWAG: dict[str, Any] = {
    "ind": 3,
    "activity_label": "Baking bread",
    "ctx_a": "How to bake [title] Mix the dough. [step] Use warm water.",
    "ctx_b": "then the Baker",
    "ctx": "How to bake [title] Mix the dough. [step] Use warm water. then the Baker",
    "endings": ["kneads it.", " [substeps] waits  an hour.", "sings", "sleeps"],
    "source_id": "wikihow~1",
    "split": "val",
    "label": "1",
}
BOOL = {"question": "is the Kiln hot", "answer": True, "passage": "The Kiln burns at noon."}

CHOSEN = Choice("Owl_7", "Which Animal flies?", ("a Cow", "an owl", "a pike"), 1)


@pytest.mark.parametrize(
    ("name", "record", "item"),
    [
        ("arc_easy", ARC, CHOSEN),
        ("arc_challenge", ARC, CHOSEN),
        ("commonsense_qa", COMMON, CHOSEN),
        ("openbookqa", STEM, Choice("Owl_7", "An animal that flies is", CHOSEN.choices, 1)),
        (
            "hellaswag",
            SWAG,
            Choice(
                "9",
                "Baking bread: How to bake. Mix the dough. Use warm water. Then the baker",
                ("kneads it.", "waits an hour.", "sings", "sleeps"),
                1,
            ),
        ),
        ("boolq", BOOL, Choice("9", "is the Kiln hot", ("no", "yes"), 1, "The Kiln burns at noon.")),
    ],
)
def test_read(name: str, record: dict[str, Any], item: Choice) -> None:
    assert DATASETS[name].read(record, "here", "9") == item


@pytest.mark.parametrize(
    ("labels", "key", "label"),
    [
        (["A", "B", "C"], "C", 2),
        (["1", "2", "3"], "3", 2),
        (["A", "B", "C"], "3", 2),
        (["1", "2", "3"], "C", 2),
        (["B", "C", "A"], "A", 2),
        (None, "B", 1),
    ],
)
def test_answer_keys_are_letters_or_digits(labels: list[str] | None, key: str, label: int) -> None:
    texts = ARC["choices"]["text"]
    choices = {"text": texts, "label": labels} if labels else texts
    assert DATASETS["arc_easy"].read({**ARC, "choices": choices, "answerKey": key}, "here", "").label == label


def test_context_of_hellaswag_in_one_field() -> None:
    record = {"ctx": "A man [laugh] walks.", "endings": ["on", "[x]"], "label": 0}
    assert DATASETS["hellaswag"].read(record, "here", "1") == Choice("1", "A man walks.", ("on", "[x]"), 0)


def test_false_is_no() -> None:
    item = DATASETS["boolq"].read({**BOOL, "answer": False, "id": 4}, "here", "1")
    assert (item.id, item.choices[item.label]) == ("4", "no")


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        ("arc_easy", {**ARC, "question": " "}, "field 'question' is blank"),
        ("arc_easy", {**ARC, "choices": "x"}, "field 'choices' must be a list of strings, not a string"),
        ("arc_easy", {**ARC, "choices": {"label": []}}, "choices: field 'text' is missing"),
        ("arc_easy", {**ARC, "choices": ["a"]}, "field 'choices' must have at least two entries, not 1"),
        ("arc_easy", {**ARC, "choices": ["a", 1]}, "choices[1] must be a string, not a number"),
        ("arc_easy", {**ARC, "choices": ["a", ""]}, "choices[1] is blank"),
        ("arc_easy", {**ARC, "choices": ["a", "\ud800"]}, "choices[1] holds half a Unicode surrogate pair"),
        (
            "arc_easy",
            {**ARC, "choices": {"text": ["a", "b"], "label": ["A"]}},
            "field 'choices' has 2 texts and 1 labels",
        ),
        ("arc_easy", {**ARC, "answerKey": "D"}, "field 'answerKey' is 'D'; the choices are A, B, C"),
        ("arc_easy", {**ARC, "answerKey": 1}, "field 'answerKey' must be a string, not a number"),
        (
            "commonsense_qa",
            {**COMMON, "answerKey": ""},
            "field 'answerKey' is blank: the right answer is hidden, as it is in the test splits of some data sets; "
            "use another split",
        ),
        ("openbookqa", ARC, "field 'question_stem' is missing"),
        ("hellaswag", {**SWAG, "endings": "x"}, "field 'endings' must be a list of strings, not a string"),
        ("hellaswag", {**SWAG, "label": "4"}, "field 'label' is '4'; it must be from 0 to 3"),
        ("hellaswag", {**SWAG, "label": 4}, "field 'label' is 4; it must be from 0 to 3"),
        ("hellaswag", {**SWAG, "label": "-1"}, "field 'label' is '-1'; it must be from 0 to 3"),
        (
            "hellaswag",
            {**SWAG, "label": ""},
            "field 'label' is blank: the right answer is hidden, as it is in the test splits of some data sets; "
            "use another split",
        ),
        ("hellaswag", {"endings": ["a", "b"], "label": 0}, "field 'ctx' is missing"),
        ("boolq", {**BOOL, "answer": "yes"}, "field 'answer' must be true or false, not a string"),
        ("boolq", {**BOOL, "passage": ""}, "field 'passage' is blank"),
        ("boolq", ["x"], "expected an object, not a list"),
    ],
)
def test_bad_records(name: str, record: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        DATASETS[name].read(record, "here", "1")
    assert str(caught.value) == f"here: {message}"


ASKED = Turn("Question: Which Animal flies?", "Answer:")
LISTED_T5 = Turn("Which Animal flies?\n\nOPTIONS:\n- a Cow\n- an owl\n- a pike")
LISTED_UNIFIEDQA = Turn("which animal flies? \\n (a) a cow (b) an owl (c) a pike")


@pytest.mark.parametrize(
    ("name", "record", "style", "turn"),
    [
        ("arc_easy", ARC, "chat-template", ASKED),
        ("arc_easy", ARC, "completion", ASKED),
        ("arc_challenge", ARC, "t5", LISTED_T5),
        ("arc_challenge", ARC, "unifiedqa", LISTED_UNIFIEDQA),
        ("commonsense_qa", COMMON, "completion", ASKED),
        ("commonsense_qa", COMMON, "chat-template", ASKED),
        ("openbookqa", STEM, "completion", Turn("An animal that flies is")),
        ("openbookqa", STEM, "unifiedqa", Turn("an animal that flies is \\n (a) a cow (b) an owl (c) a pike")),
        (
            "boolq",
            BOOL,
            "chat-template",
            Turn("Passage: The Kiln burns at noon.\n\nQuestion: is the Kiln hot?", "Answer:"),
        ),
        ("openbookqa", STEM, "chat-template", Turn("Question: An animal that flies is", "Answer:")),
        ("boolq", BOOL, "completion", Turn("The Kiln burns at noon.\nQuestion: is the Kiln hot?", "Answer:")),
        ("boolq", BOOL, "t5", Turn("The Kiln burns at noon.\n\nis the Kiln hot?\n\nOPTIONS:\n- no\n- yes")),
        ("boolq", BOOL, "unifiedqa", Turn("is the kiln hot? \\n the kiln burns at noon.")),
        (
            "boolq",
            {**BOOL, "question": "hot?"},
            "completion",
            Turn("The Kiln burns at noon.\nQuestion: hot?", "Answer:"),
        ),
    ],
)
def test_prompts(name: str, record: dict[str, Any], style: str, turn: Turn) -> None:
    dataset = DATASETS[name]
    assert dataset.prompt(dataset.read(record, "here", "1"), style) == turn


def test_prompts_of_hellaswag() -> None:
    dataset = DATASETS["hellaswag"]
    item = Choice("1", "He bakes: A", ("x", "y"), 0)
    ask = "Which of these continues the text?"
    assert dataset.prompt(item, "completion") == Turn("He bakes: A")
    assert dataset.prompt(item, "chat-template") == Turn("What happens next?\n\nHe bakes: A", "Next:")
    assert dataset.prompt(item, "t5") == Turn(f"He bakes: A\n\n{ask}\n\nOPTIONS:\n- x\n- y")
    assert dataset.prompt(item, "unifiedqa") == Turn(f"{ask.lower()} \\n (a) x (b) y \\n he bakes: a")


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("arc_easy", "accuracy_norm"),
        ("arc_challenge", "accuracy_norm"),
        ("openbookqa", "accuracy_norm"),
        ("hellaswag", "accuracy_norm"),
        ("commonsense_qa", "accuracy"),
        ("boolq", "accuracy"),
    ],
)
def test_metric_that_decides(name: str, metric: str) -> None:
    assert (DATASETS[name].task, DATASETS[name].metric) == ("choices", metric)
