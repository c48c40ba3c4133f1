"""Speech recognition: transcripts against the models' own pipelines, padding, error rates, KL."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_speech
import torch
import transformers
from both_arms import answers, both_arms, distances, plan_for, summary
from hf_sparsify.errors import DataError, SparsifyError, UsageError
from hf_sparsify.evaluation.error_rates import character_errors, word_errors
from hf_sparsify.evaluation.items import ItemSet
from hf_sparsify.evaluation.sources import load_items
from hf_sparsify.evaluation.tasks import TaskOptions, task_for
from hf_sparsify.evaluation.tasks.base import TOO_LONG
from hf_sparsify.patcher.binding.loading import LoadedModel, load_model
from hf_sparsify.patcher.binding.patching import apply_plan, remove_patch
from hf_sparsify.patcher.methods import Clustered, ClusteredPlain, TopK

KINDS = ("ctc", "group", "whisper")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedModel]:
    folder = tmp_path_factory.mktemp("models")
    tiny_speech.save_ctc(folder / "ctc")
    tiny_speech.save_ctc(folder / "group", norm="group", mask=False)
    tiny_speech.save_whisper(folder / "whisper")
    return {name: load_model(str(folder / name)) for name in KINDS}


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> ItemSet:
    return load_items(str(tiny_speech.save_recordings(tmp_path_factory.mktemp("sound"))))


def heard(loaded: LoadedModel, item: Any) -> str:
    """What transformers' own pipeline says to one recording; for Whisper its `generate`."""
    values = item.sound.decoded(tiny_speech.RATE)
    if loaded.base.model_type == "whisper":
        made = loaded.extractor(values, sampling_rate=tiny_speech.RATE, return_tensors="pt")
        written = loaded.model.generate(made["input_features"])
        said: str = loaded.tokenizer.batch_decode(written, skip_special_tokens=True)[0]
        return said.strip()
    pipeline = transformers.pipeline(
        "automatic-speech-recognition",
        model=loaded.model,
        tokenizer=loaded.tokenizer,
        feature_extractor=loaded.extractor,
    )
    text: str = pipeline(values)["text"]
    return re.sub("</?s>|<unk>", "", text).strip()  # the pipeline writes special tokens of CTC models


@pytest.mark.parametrize("name", KINDS)
def test_transcripts_are_those_of_the_pipeline_alone_and_in_batches(
    name: str, models: dict[str, LoadedModel], items: ItemSet
) -> None:
    loaded, method = models[name], TopK(k=5)
    alone, together = (both_arms(loaded, items, method, batch_size=size, max_new_tokens=None) for size in (1, 3))
    assert answers(alone) == answers(together)
    assert distances(alone) == pytest.approx(distances(together), rel=1e-3, abs=1e-6)
    assert min(distances(alone)) > 1e-6
    assert together.task.batch_size == (1 if name == "group" else 3)
    said = [heard(loaded, item) for item in items.items]
    assert [dense for dense, _ in answers(alone)] == said
    assert len(set(said)) > 1
    apply_plan(loaded.model, plan_for(loaded, method))
    assert [patched for _, patched in answers(alone)] == [heard(loaded, item) for item in items.items]
    remove_patch(loaded.model)
    assert alone.records[1].tokens == 0.45 * tiny_speech.RATE


def test_special_tokens_of_frames_are_blanks(models: dict[str, LoadedModel], items: ItemSet) -> None:
    task = task_for(models["ctc"], items)
    frames = ["a", "a", "<pad>", "a", "|", "<unk>", "b", "<s>", "b", "</s>", "|", "c"]
    tokens = models["ctc"].tokenizer.convert_tokens_to_ids(frames)
    assert task._text(tokens) == "aa bb c"  # type: ignore[attr-defined]


def test_a_model_that_padding_moves_hears_one_by_one(tmp_path: Path, items: ItemSet) -> None:
    """Data2Vec's convolutions over positions reach from the padding into the sound."""
    moved = load_model(str(tiny_speech.save_ctc(tmp_path / "data2vec", family="Data2VecAudio")))
    assert task_for(moved, items, TaskOptions(batch_size=4)).batch_size == 1
    other = load_model(str(tiny_speech.save_ctc(tmp_path / "hubert", family="Hubert")))
    assert task_for(other, items, TaskOptions(batch_size=4)).batch_size == 4


@pytest.mark.parametrize("name", KINDS)
def test_in_the_dense_limit_nothing_differs(name: str, models: dict[str, LoadedModel], items: ItemSet) -> None:
    found = both_arms(models[name], items, TopK(keep=1.0), max_new_tokens=None)
    results = summary(found)
    assert results["same_answer_share"] == 1
    assert max(distances(found)) < 1e-5
    assert results["error_rates"]["wer"]["difference"] == 0
    assert results["flips"]["right_to_wrong"] == ()
    assert results["dataset"]["groups"] == 3  # speakers


def test_kl_is_that_of_float64_over_the_frames(models: dict[str, LoadedModel], items: ItemSet) -> None:
    loaded, method = models["ctc"], Clustered(clusters=4, k=2)
    found = both_arms(loaded, items, method, batch_size=4)
    assert found.journal.meter.total().cluster_scores > 0
    for record in found.records:
        values = loaded.extractor(
            record.item.sound.decoded(tiny_speech.RATE), sampling_rate=tiny_speech.RATE, return_tensors="pt"
        )["input_values"]
        with torch.no_grad():
            dense = loaded.model(values).logits.double().log_softmax(-1)
            apply_plan(loaded.model, plan_for(loaded, method))
            patched = loaded.model(values).logits.double().log_softmax(-1)
            remove_patch(loaded.model)
        kl = (dense.exp() * (dense - patched)).sum(-1).mean()
        assert record.distance == {"kl": pytest.approx(float(kl), rel=1e-3), "tokens": dense.shape[1]}


def test_error_rates_are_over_all_words_and_scores_per_recording(
    models: dict[str, LoadedModel], items: ItemSet
) -> None:
    task = task_for(models["ctc"], items)
    found = both_arms(models["ctc"], items, ClusteredPlain(clusters=2))
    said = {"u0": ("one two", "one two"), "u1": ("A b, c.", "a x y c"), "u2": ("a", "a b c d"), "u3": ("don't", "dont")}
    for record in found.records:
        gold, dense = said[record.item.id]
        record.item = replace(record.item, text=gold)
        record.dense["answer"], record.patched["answer"] = dense, gold
    scores = {record.item.id: task.score(record, "dense") for record in found.records}
    assert [scores[name]["word_accuracy"] for name in said] == [1, pytest.approx(1 / 3), 0, 1]
    assert [scores[name]["exact"] for name in said] == [1, 0, 0, 1]
    results = summary(found)
    assert results["error_rates"]["wer"]["dense"] == pytest.approx(100 * (2 + 3) / 7)
    assert results["error_rates"]["wer"]["patched"] == 0
    assert results["error_rates"]["wer"]["difference"] == pytest.approx(-100 * 5 / 7)
    assert results["error_rates"]["wer"]["units"] == 7
    assert results["error_rates"]["wer"]["low"] < -50 < results["error_rates"]["wer"]["high"]
    assert results["scores"]["dense"]["word_accuracy"] == pytest.approx(100 * (1 + 1 / 3 + 0 + 1) / 4)
    assert (word_errors("a b", ""), character_errors("ab", "b")) == ((2, 2), (1, 2))


def test_whisper_texts_go_through_its_normalizer(models: dict[str, LoadedModel], items: ItemSet) -> None:
    task = task_for(models["whisper"], items)
    assert task.style.endswith("greedy transcript; compared after Whisper's basic normalizer")
    assert task.normalized("Ab [noise]  c!") == "ab c"  # type: ignore[attr-defined]
    assert task_for(models["ctc"], items).style == (
        "sound at 16000 Hz, greedy CTC; compared after lower case, no punctuation"
    )


def test_what_cannot_be_scored_is_left_out_and_counted(models: dict[str, LoadedModel], items: ItemSet) -> None:
    first = items.items[0]
    long = replace(first, id="long", sound=replace(first.sound, samples=tiny_speech.RATE + 1))
    short = replace(first, id="short", sound=replace(first.sound, samples=50))
    noise = replace(first, id="noise", text="[noise]")
    silent = replace(first, id="silent", text="...")
    odd = {"whisper": (long, short, noise, silent, *items.items), "ctc": (short, noise, silent, *items.items)}
    whisper, ctc = (
        both_arms(models[name], replace(items, items=some), TopK(k=2), max_new_tokens=None)
        for name, some in odd.items()
    )
    assert whisper.left_out == {TOO_LONG: 1, "whose text has no words": 2}
    assert ctc.left_out == {"too short for one frame": 1, "whose text has no words": 1}
    assert [record.item.id for record in whisper.records] == ["short", "u0", "u1", "u2", "u3"]
    assert [record.item.id for record in ctc.records] == ["noise", "u0", "u1", "u2", "u3"]
    assert summary(ctc)["dataset"]["left_out_otherwise"] == ctc.left_out
    assert task_for(models["whisper"], items).calibration_inputs(long) == []
    assert task_for(models["ctc"], items).calibration_inputs(short) == []
    with pytest.raises(
        DataError, match=r"speech\.jsonl can be evaluated: 1 too short for one frame; 1 whose text has no"
    ):
        both_arms(models["ctc"], replace(items, items=(short, silent)), TopK(k=2))


def test_refusals(models: dict[str, LoadedModel], items: ItemSet) -> None:
    with pytest.raises(UsageError, match="--shots and --prompt-template are for models that are told what to do"):
        both_arms(models["ctc"], items, TopK(k=2), template="{text}")
    with pytest.raises(UsageError, match="--max-new-tokens 38 is too many: the model has 40 positions, 3 of"):
        both_arms(models["whisper"], items, TopK(k=2), max_new_tokens=38)
    assert both_arms(models["whisper"], items, TopK(k=2), max_new_tokens=37).records
    with pytest.raises(SparsifyError, match="has no processor that can be loaded"):
        task_for(replace(models["ctc"], extractor=None), items)


@pytest.mark.parametrize("name", ["ctc", "whisper"])
def test_calibration_sees_one_recording_and_its_text(name: str, models: dict[str, LoadedModel], items: ItemSet) -> None:
    (sample,) = task_for(models[name], items, TaskOptions()).calibration_inputs(items.items[1])
    if name == "ctc":
        assert sample["input_values"].shape == (1, 0.45 * tiny_speech.RATE)
        return
    tokens = models[name].tokenizer.convert_ids_to_tokens(sample["decoder_input_ids"][0].tolist())
    heard = models[name].model.detect_language(input_features=sample["input_features"])
    (language,) = models[name].tokenizer.convert_ids_to_tokens(heard)
    assert tokens[:3] == ["<|startoftranscript|>", language, "<|notimestamps|>"]
    assert "".join(tokens[3:]).replace("Ġ", " ") == items.items[1].text


def test_calibration_goes_on_from_what_an_answer_begins_with(models: dict[str, LoadedModel], items: ItemSet) -> None:
    task = task_for(models["whisper"], items, TaskOptions())
    for item, answer in zip(items.items, task.predict(items.items), strict=True):
        (sample,) = task.calibration_inputs(item)
        assert len(answer["_start"]) > 1
        assert sample["decoder_input_ids"][0, : len(answer["_start"])].tolist() == answer["_start"]


def test_a_text_is_cut_to_the_positions_of_the_decoder(models: dict[str, LoadedModel], items: ItemSet) -> None:
    wordy = replace(items.items[0], text="abc " * 30)
    (sample,) = task_for(models["whisper"], items, TaskOptions()).calibration_inputs(wordy)
    assert sample["decoder_input_ids"].shape == (1, 40)
    assert models["whisper"].model(**sample).logits.shape[1] == 40
