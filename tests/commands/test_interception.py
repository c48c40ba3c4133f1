"""Whole commands on models that compute attention themselves: they work, and say what they are good for."""

from __future__ import annotations

import json
from pathlib import Path

from command_line import Sparsify, files, refused
from tiny_language_models import WORDS, tokenizer
from transformers.dynamic_module_utils import get_class_from_dynamic_module

SAID = "interception: accuracy only, in 2 modules"

REMOTE_CODE = """
import torch
from torch import nn
from transformers import GPT2Config, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutput


class OwnConfig(GPT2Config):
    model_type = "own"


class OwnSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.num_heads = config.n_head
        self.qkv, self.out = nn.Linear(config.n_embd, 3 * config.n_embd), nn.Linear(config.n_embd, config.n_embd)

    def forward(self, hidden, mask):
        batch, length, width = hidden.shape
        q, k, v = self.qkv(hidden).view(batch, length, 3 * self.num_heads, -1).transpose(1, 2).chunk(3, 1)
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        weights = nn.functional.softmax(scores.masked_fill(~mask, torch.finfo(scores.dtype).min), dim=-1)
        return self.out((weights @ v).transpose(1, 2).reshape(batch, length, width))


class OwnForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.n_embd)
        self.attn = nn.ModuleList([OwnSelfAttention(config) for _ in range(config.n_layer)])
        self.head = nn.Linear(config.n_embd, config.vocab_size)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        length = input_ids.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool).tril()
        if attention_mask is not None:
            mask = mask & attention_mask[:, None, None].bool()
        hidden = self.embed(input_ids)
        for layer in self.attn:
            hidden = hidden + layer(hidden, mask)
        return CausalLMOutput(logits=self.head(hidden))
"""


def on_one_line(text: str) -> str:
    """A report without the line breaks of the terminal."""
    return " ".join(text.split())


def test_patch_calibrate_and_eval_of_gpt_neo(sparsify: Sparsify, work: Path) -> None:
    done = sparsify("patch", "gpt-neo", "--k", "4")
    assert (done.code, SAID in on_one_line(done.out)) == (0, True), done
    assert "cached decoding equals the full forward pass" in done.out
    done = sparsify("calibrate", "-d", "q.jsonl", "--samples", "4")
    assert (done.code, SAID in on_one_line(done.out)) == (0, True), done
    done = sparsify("eval", "-d", "q.jsonl", "-o", "results")
    assert SAID in on_one_line(done.out), done
    results = json.loads((work / "results" / "results.json").read_text())
    assert results["interception"]["modules"] == ["transformer.h.0.attn.attention", "transformer.h.1.attn.attention"]
    assert results["interception"]["note"].startswith(SAID)
    assert results["kept"]["total"]["rows_without_threshold"] < results["kept"]["total"]["long_rows"]
    assert results["kept"]["total"]["decode_v_rows_share"] is None
    for command in (("validate",), ("generate", "sparsified", "Where is Ann ?", "--max-new-tokens", "3")):
        done = sparsify(*command)
        assert (done.code, SAID in on_one_line(done.out)) == (0, True), done


def test_patch_and_eval_of_an_encoder(sparsify: Sparsify, work: Path) -> None:
    done = sparsify("patch", "mpnet", "--k", "4")
    assert (done.code, SAID in on_one_line(done.out)) == (0, True), done
    done = sparsify("eval", "-d", "q.jsonl", "--json")
    assert json.loads(done.out)["interception"]["note"].startswith(SAID), done


def test_several_recipes_side_by_side(sparsify: Sparsify, work: Path) -> None:
    for k in ("4", "8"):
        assert sparsify("patch", "gpt-neo", "--k", k, "-o", f"at-{k}", "--no-verify").code == 0
    done = sparsify("eval", "at-4", "at-8", "-d", "q.jsonl", "--limit", "2")
    assert all(f"at-{k}: {SAID}" in on_one_line(done.out) for k in "48"), done


def test_a_model_that_goes_both_ways(sparsify: Sparsify, work: Path) -> None:
    done = sparsify("patch", "longt5", "--k", "4")
    assert (done.code, f"{SAID} (LongT5LocalAttention)" in on_one_line(done.out)) == (0, True), done
    done = sparsify("patch", "longt5", "--k", "4", "--stack", "decoder", "-o", "decoder")
    assert (done.code, "interception" in done.out) == (0, False), done


def test_times_of_intercepted_modules_are_not_taken(sparsify: Sparsify, work: Path) -> None:
    refused(sparsify("bench", "gpt-neo", "--lengths", "32"), 4, f"nothing to time: {SAID}")
    assert files(work) == []


def test_methods_say_it(sparsify: Sparsify) -> None:
    assert "interception: accuracy only" in on_one_line(sparsify("methods").out)


def save_with_code(folder: Path) -> None:
    """A random model in a folder, with its tokenizer and its own modeling file."""
    source = folder.parent / "source"
    source.mkdir()
    (source / "modeling_own.py").write_text(REMOTE_CODE)
    model_class = get_class_from_dynamic_module("modeling_own.OwnForCausalLM", str(source))
    model_class.config_class.register_for_auto_class()
    model_class.register_for_auto_class("AutoModelForCausalLM")
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96}
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 3, "use_cache": False}
    model_class(model_class.config_class(vocab_size=len(WORDS), **sizes, **ids)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def test_code_that_comes_with_a_model(sparsify: Sparsify, work: Path) -> None:
    save_with_code(work / "own")
    done = sparsify("patch", "own", "--trust-remote-code", "--k", "4")
    assert (done.code, f"{SAID} (OwnSelfAttention)" in on_one_line(done.out)) == (0, True), done
    assert "the future does not matter" in done.out
    done = sparsify("eval", "--trust-remote-code", "-d", "q.jsonl", "--limit", "2")
    assert f"{SAID} (OwnSelfAttention)" in on_one_line(done.out), done
