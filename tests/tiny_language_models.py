"""Tiny random language models with tokenizers, saved to folders, and questions for them: whole commands run offline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

PAD, EOS, UNK, BOS = "<pad>", "</s>", "<unk>", "<s>"
NAMES = ("Ann", "Ben", "Cleo", "Dan", "Eve", "Fay", "Gus", "Hal")
PLACES = ("attic", "barn", "cellar", "den", "embassy", "forge", "garden", "hall")
WORDS = [
    *(PAD, EOS, UNK, BOS, "user", "assistant", ":", ".", ",", "?", '"', "\n"),
    *("question", "context", "Question", "Answer", "Passage", "Where", "is", "in", "the", "If", "span"),
    *("a", "short", "of", "words", "copied", "from", "passage", "Reply", "with", "answer", "only", "does"),
    *("not", "reply", "unanswerable"),
    *NAMES,
    *PLACES,
]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} : {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)

_SHARED = {"vocab_size": len(WORDS), "pad_token_id": 0, "eos_token_id": 1}
_ENCODER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
_DECODER = {**_SHARED, "bos_token_id": 3}
_POSITIONS = {"max_position_embeddings": 512}
_BART = {
    **_DECODER,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "max_position_embeddings": 96,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
}

# Family -> its class and configuration.
_FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**_DECODER, **_ENCODER, **_POSITIONS, "num_key_value_heads": 2}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {**_DECODER, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96}),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {
            **_SHARED,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 40,
            "num_layers": 2,
            "num_heads": 4,
            "decoder_start_token_id": 0,
            "relative_attention_num_buckets": 8,
            "relative_attention_max_distance": 20,
        },
    ),
    "bart": ("BartForConditionalGeneration", "BartConfig", _BART),
    "bart-qa": ("BartForQuestionAnswering", "BartConfig", _BART),
    "bert-qa": ("BertForQuestionAnswering", "BertConfig", {**_SHARED, **_ENCODER, "max_position_embeddings": 96}),
    "roberta-qa": (
        "RobertaForQuestionAnswering",
        "RobertaConfig",
        {**_SHARED, **_ENCODER, "max_position_embeddings": 97, "type_vocab_size": 1},
    ),
    "distilbert-qa": (
        "DistilBertForQuestionAnswering",
        "DistilBertConfig",
        {**_SHARED, "dim": 32, "hidden_dim": 40, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 96},
    ),
    "bert": ("BertForMaskedLM", "BertConfig", {**_SHARED, **_ENCODER, **_POSITIONS}),
    "bert-classes": (
        "BertForSequenceClassification",
        "BertConfig",
        {**_SHARED, **_ENCODER, "max_position_embeddings": 96, "num_labels": 2},
    ),
    "llama-classes": (
        "LlamaForSequenceClassification",
        "LlamaConfig",
        {**_DECODER, **_ENCODER, **_POSITIONS, "num_key_value_heads": 2, "num_labels": 2},
    ),
    "mpnet": ("MPNetForMaskedLM", "MPNetConfig", {**_DECODER, **_ENCODER, **_POSITIONS}),
    "yoso": ("YosoModel", "YosoConfig", {**_SHARED, **_ENCODER, **_POSITIONS}),
    "longt5": (
        "LongT5ForConditionalGeneration",
        "LongT5Config",
        {
            **_SHARED,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 40,
            "num_layers": 2,
            "num_heads": 4,
            "local_radius": 7,
            "decoder_start_token_id": 0,
        },
    ),
    "gpt-neo": (
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        {**_DECODER, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]]},
    ),
}


def tokenizer(
    *, chat: bool = False, ends: bool = False, pairs: bool = False, token_types: bool = True
) -> PreTrainedTokenizerFast:
    """One token per word. chat: with a template. ends: appends the end token, as T5's does. pairs: with the begin token
    first and an end token behind each text, as BERT's [CLS] and [SEP]; token_types: tells the two texts apart."""
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token=UNK))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    if ends:
        words.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, 1)])
    special: dict[str, Any] = {"pad_token": PAD, "eos_token": EOS, "unk_token": UNK}
    if pairs:
        words.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A {EOS}",
            pair=f"{BOS} $A {EOS} $B:1 {EOS}:1",
            special_tokens=[(BOS, WORDS.index(BOS)), (EOS, WORDS.index(EOS))],
        )
        names = ["input_ids", "token_type_ids", "attention_mask"]
        special |= {
            "cls_token": BOS,
            "sep_token": EOS,
            "model_input_names": names if token_types else ["input_ids", "attention_mask"],
        }
    made = PreTrainedTokenizerFast(tokenizer_object=words, **special)
    if chat:
        made.chat_template = CHAT_TEMPLATE
    return made


def make(name: str, **changes: Any) -> Any:
    """A random model of a family; `changes` go into its configuration.

    The weights are large enough that attention is far from uniform, so that small k changes answers.
    """
    model_class, config_class, options = _FAMILIES[name]
    config = getattr(transformers, config_class)(**{**options, **changes})
    model = getattr(transformers, model_class)(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.16 if "t5" in name else 0.3))
    return model


def save(name: str, folder: Path, *, chat: bool = False, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """Saves the model that `make` makes with its tokenizer."""
    make(name, **changes).to(dtype).save_pretrained(folder)
    pairs = name.endswith("-qa") or name == "bert-classes"
    made = tokenizer(
        chat=chat, ends=name in ("t5", "bart"), pairs=pairs, token_types=name in ("bert-qa", "bert-classes")
    )
    made.save_pretrained(folder)
    return folder


def save_slow_tokenizer(folder: Path) -> Path:
    """Replaces a saved model's tokenizer by one written in Python, which knows no offsets."""
    for file in folder.glob("tokenizer*"):
        file.unlink()
    (folder / "vocab.txt").write_text("\n".join(["<pad>", "<eos>", "<unk>", "<cls>", "<mask>", *WORDS[5:]]))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "EsmTokenizer"}))
    return folder


def records(count: int, people: int = 6) -> list[dict[str, Any]]:
    """Questions such as "Where is Ann ?", each on a passage of its own length, with two kinds."""
    made = []
    for index in range(count):
        here = [(NAMES[(index + i) % len(NAMES)], PLACES[(3 * index + 5 * i) % len(PLACES)]) for i in range(people)]
        here = here[: people - index % 3]
        name, place = here[index % len(here)]
        made.append(
            {
                "id": f"q{index}",
                "context": " ".join(f"{who} is in the {where} ." for who, where in here),
                "question": f"Where is {name} ?",
                "answers": [place],
                "kind": "even" if index % 2 == 0 else "odd",
            }
        )
    return made


def save_questions(path: Path, count: int = 6, **options: Any) -> Path:
    """Writes such questions as JSON Lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records(count, **options)), encoding="utf-8")
    return path


def edit_config(folder: Path, **changes: Any) -> None:
    """Changes fields of a saved model's configuration."""
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**data, **changes}))
