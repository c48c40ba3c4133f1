"""Classification: GLUE's data sets, and files with labels of their own."""

from __future__ import annotations

from typing import Any

import pytest
from hf_sparsify.errors import DataError
from hf_sparsify.evaluation.datasets import DATASETS
from hf_sparsify.evaluation.formats import items_from_records
from hf_sparsify.evaluation.items import Labelled
from hf_sparsify.evaluation.prompts import Turn

# fields, one name of a label with its index, the word for it, and the prompt of a model that continues texts
GLUE: dict[str, tuple[tuple[str, ...], str, int, str, str]] = {
    "sst2": (("sentence",), "positive", 1, "positive", "A b\nQuestion: Is this sentence positive or negative?"),
    "cola": (("sentence",), "acceptable", 1, "yes", "A b\nQuestion: Does this sentence make sense?"),
    "mrpc": (
        ("sentence1", "sentence2"),
        "equivalent",
        1,
        "yes",
        "Sentence 1: A b\nSentence 2: C d\nQuestion: Do both sentences mean the same thing?",
    ),
    "qqp": (
        ("question1", "question2"),
        "duplicate",
        1,
        "yes",
        "Question 1: A b\nQuestion 2: C d\nQuestion: Do both questions ask the same thing?",
    ),
    "qnli": (
        ("question", "sentence"),
        "entailment",
        0,
        "yes",
        "A b\nC d\nQuestion: Does this response answer the question?",
    ),
    "rte": (("sentence1", "sentence2"), "entailment", 0, "True", "A b\nQuestion: C d True or False?"),
    "wnli": (("sentence1", "sentence2"), "entailment", 1, "True", "A b\nQuestion: C d True or False?"),
    "mnli": (
        ("premise", "hypothesis"),
        "contradiction",
        2,
        "False",
        "A b\nQuestion: C d. True, False or Neither?",
    ),
}
TEXTS = ("A b", "C d")


def record_of(name: str, label: object) -> dict[str, Any]:
    return {**dict(zip(GLUE[name][0], TEXTS, strict=False)), "label": label, "idx": 12}


@pytest.mark.parametrize("name", GLUE)
def test_glue(name: str) -> None:
    fields, label, index, word, completion = GLUE[name]
    dataset = DATASETS[name]
    item = Labelled("12", TEXTS[: len(fields)], index)
    assert dataset.read(record_of(name, index), "here", "0") == item
    assert dataset.read(record_of(name, label), "here", "0") == item
    assert (dataset.labels[index], dataset.words[index]) == (label, word)
    assert len(dataset.labels) == len(dataset.words) == (3 if name == "mnli" else 2)
    assert dataset.prompt(item, "completion") == Turn(completion, "Answer:")
    assert (dataset.task, dataset.metric, dataset.hub, dataset.config) == ("labels", "accuracy", "nyu-mll/glue", name)


def test_every_data_set_of_glue_is_tested() -> None:
    assert {name for name, dataset in DATASETS.items() if dataset.hub == "nyu-mll/glue"} == set(GLUE)


def test_prompts_of_the_other_styles() -> None:
    item = Labelled("1", ("Fine {text}",), 1)
    prompt = DATASETS["sst2"].prompt
    ask = "Is this sentence positive or negative?"
    assert prompt(item, "chat-template") == Turn(f"Fine {{text}}\nQuestion: {ask}", "Answer:")
    assert prompt(item, "t5") == Turn(f"Fine {{text}}\n\n{ask}\n\nOPTIONS:\n- negative\n- positive")
    assert prompt(item, "unifiedqa") == Turn(f"{ask.lower()} \\n (a) negative (b) positive \\n fine {{text}}")


def test_hypothesis_has_one_full_stop() -> None:
    asked = DATASETS["mnli"].prompt(Labelled("1", ("A b.", " C d. "), 0), "completion")
    assert asked.text == "A b.\nQuestion: C d. True, False or Neither?"


def test_one_text_of_a_pair_may_be_blank() -> None:
    record = {"question1": "Why?", "question2": "", "label": 0}
    assert DATASETS["qqp"].read(record, "here", "3") == Labelled("3", ("Why?", ""), 0)


HIDDEN = "field 'label' is -1: the label is hidden, as it is in GLUE's test splits; use another split"


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        ("sst2", record_of("sst2", -1), HIDDEN),
        ("sst2", record_of("sst2", 2), "field 'label' is 2; it must be from 0 to 1"),
        ("sst2", record_of("sst2", "good"), "field 'label' is 'good'; the labels are negative, positive"),
        ("sst2", record_of("sst2", True), "field 'label' must be a whole number or a name, not true or false"),
        ("sst2", record_of("sst2", 0.5), "field 'label' must be a whole number or a name, not a number"),
        ("sst2", {"sentence": "x"}, "field 'label' is missing"),
        ("rte", record_of("sst2", 1), "field 'sentence1' is missing"),
        ("sst2", {"sentence": " ", "label": 0}, "field 'sentence' is blank"),
        ("mnli", {"premise": "", "hypothesis": " ", "label": 0}, "field 'premise' is blank"),
        ("mnli", "x", "expected an object, not a string"),
    ],
)
def test_bad_records(name: str, record: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        DATASETS[name].read(record, "here", "0")
    assert str(caught.value) == f"here: {message}"


def load(*records: Any) -> Any:
    return items_from_records([(f"line {number}", record) for number, record in enumerate(records, start=1)], "x.jsonl")


@pytest.mark.parametrize(
    "fields",
    [
        ("sentence",),
        ("sentence1", "sentence2"),
        ("premise", "hypothesis"),
        ("question1", "question2"),
        ("question", "sentence"),
        ("text",),
    ],
)
def test_files_with_labels_of_their_own(fields: tuple[str, ...]) -> None:
    texts = dict(zip(fields, TEXTS, strict=False))
    loaded = load({**texts, "label": "off_topic"}, {**texts, "label": "apt"}, {**texts, "label": "off_topic"})
    assert loaded.dataset.name == "labels"
    assert loaded.dataset.labels == ("apt", "off_topic")
    assert loaded.dataset.words == ("apt", "off topic")
    assert loaded.items == tuple(
        Labelled(str(number), TEXTS[: len(fields)], label) for number, label in enumerate((1, 0, 1))
    )
    shown = "A b" if len(fields) == 1 else "Text 1: A b\nText 2: C d"
    asked = loaded.dataset.prompt(loaded.items[0], "completion")
    assert asked == Turn(f"{shown}\nQuestion: Which label fits: apt, off topic?", "Answer:")


def test_numbered_labels_go_from_0_to_the_greatest() -> None:
    loaded = load({"text": "a", "label": 3}, {"text": "b", "label": 1})
    assert loaded.dataset.labels == loaded.dataset.words == ("0", "1", "2", "3")
    assert [item.label for item in loaded.items] == [3, 1]


def test_names_of_labels_may_have_braces() -> None:
    loaded = load({"text": "a", "label": "{x}"}, {"text": "b", "label": "{"})
    assert "Which label fits: {, {x}?" in loaded.dataset.prompt(loaded.items[0], "t5").text


TEXT = {"text": "a"}


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{**TEXT, "label": -1}], f"line 1: {HIDDEN}"),
        ([{**TEXT, "label": 0}, {**TEXT, "label": -1}], f"line 2: {HIDDEN}"),
        (
            [{**TEXT, "label": 1}, {**TEXT, "label": "one"}],
            "line 2: field 'label' is 'one'; a file has numbers or names, not both",
        ),
        (
            [{**TEXT, "label": "one"}, {**TEXT, "label": 1}],
            "line 2: field 'label' is 1; a file has numbers or names, not both",
        ),
        ([{**TEXT, "label": 3.5}], "line 1: field 'label' must be a whole number or a name, not a number"),
        ([{**TEXT, "label": True}], "line 1: field 'label' must be a whole number or a name, not true or false"),
        ([{**TEXT, "label": " "}], "line 1: field 'label' is blank"),
        ([{**TEXT, "label": 10**9}], "line 1: field 'label' is 1000000000; an index of a label is less than 10000"),
        ([{**TEXT, "label": 0}, TEXT], "line 2: field 'label' is missing"),
        ([{"text": " ", "label": 0}], "line 1: field 'text' is blank"),
        (
            [{"body": "a", "label": 0}],
            "line 1: there is no text next to the label; the fields may be sentence1 + sentence2, premise + "
            "hypothesis, question1 + question2, question + sentence, sentence, text",
        ),
    ],
)
def test_bad_labels_of_a_file(records: list[Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        load(*records)
    assert str(caught.value) == f"x.jsonl: {message}"
