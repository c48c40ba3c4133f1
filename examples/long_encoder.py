"""Saves a small BERT with random weights and thousands of positions, to time attention on long texts:

    python examples/long_encoder.py long-encoder
    sparsify patch long-encoder --attention clustered --no-verify -o long-clustered
    sparsify bench long-clustered --lengths 1k,2k,4k,8k

Times do not depend on what the weights are; accuracy does, so there is nothing else to learn from this model. Its
tokenizer is the one of demo-bert.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from hf_sparsify.evaluation.demo import demo_model_path
from transformers import AutoTokenizer, BertConfig, BertModel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--positions", type=int, default=8192)
    parser.add_argument("--layers", type=int, default=4)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(demo_model_path("demo-bert"))
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=512,
        num_hidden_layers=arguments.layers,
        num_attention_heads=8,
        intermediate_size=2048,
        max_position_embeddings=arguments.positions,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = BertModel(config, add_pooling_layer=False)
    model.save_pretrained(arguments.folder)
    tokenizer.save_pretrained(arguments.folder)
    print(f"{model.num_parameters():,} parameters in {arguments.folder}")


if __name__ == "__main__":
    main()
