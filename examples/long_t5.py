"""Long inputs through T5 encoders that are patched with top-k attention, and how much memory that takes:

    python examples/long_t5.py

One encoder has the size of T5-small but for its layers and random weights, the other is that of demo-t5. The position
bias of T5 is the same for all keys at one distance, so a patched model never makes the (queries x keys) tensor of it.
"Peak" is what the process takes beyond what it had with both models loaded, and "bias alone" what that one tensor would
hold. Seconds are those of the processor.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import hf_sparsify
import torch
from hf_sparsify.benchmark import peak
from hf_sparsify.evaluation.demo import demo_model_path
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import T5Config, T5EncoderModel

CPU = torch.device("cpu")
MB = 2**20


class Largest(TorchDispatchMode):
    """Remembers the bytes of the largest tensor that any operation makes."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 8192, 16384])
    parser.add_argument("--layers", type=int, default=2, help="of the random encoder")
    parser.add_argument("--k", type=int, default=64)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    small = T5EncoderModel(T5Config(num_layers=arguments.layers)).eval()
    demo = T5EncoderModel.from_pretrained(demo_model_path("demo-t5")).eval()
    same_at = min(1024, *arguments.tokens)
    print("| encoder | tokens | peak, MB | largest tensor, MB | bias alone, MB | seconds |")
    print("|---|---|---|---|---|---|", flush=True)
    loaded = peak.used(CPU) or 0
    for name, model in (("demo-t5", demo), (f"T5-small, {arguments.layers} layers", small)):
        for tokens in arguments.tokens:
            print(f"| {name} | {tokens:,} | {read(model, tokens, arguments.k, loaded)} |", flush=True)
    for name, model in (("demo-t5", demo), ("T5-small", small)):
        print(f"{name}, k = all of {same_at:,} tokens: off by at most {error(model, same_at):.1e} of the largest state")


def states(model: T5EncoderModel, tokens: int) -> Tensor:
    """Hidden states [1, tokens, d_model] of random token ids."""
    ids = torch.randint(3, model.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found: Tensor = model(input_ids=ids).last_hidden_state
    return found


def read(model: T5EncoderModel, tokens: int, k: int, loaded: int) -> str:
    """The cells of a row that say what reading so many tokens took; loaded: bytes in use before all."""
    with hf_sparsify.patch(model, hf_sparsify.TopK(k=k)):
        peak.forget_peak(CPU)
        start = time.process_time()
        with Largest() as largest:
            states(model, tokens)
        seconds, taken = time.process_time() - start, (peak.peak(CPU) or 0) - loaded
    whole = model.config.num_heads * tokens * tokens * 4
    return f"{taken / MB:,.0f} | {largest.bytes / MB:,.0f} | {whole / MB:,.0f} | {seconds:.0f}"


def error(model: T5EncoderModel, tokens: int) -> float:
    """How far a model that keeps every key is from the dense one."""
    dense = states(model, tokens)
    with hf_sparsify.patch(model, hf_sparsify.TopK(k=tokens)):
        found = states(model, tokens)
    return float((found - dense).abs().max() / dense.abs().max())


if __name__ == "__main__":
    main()
