"""torch.compile and a patch: the compiled model follows patching and unpatching, and stays one graph.

    python examples/compile.py [--backend inductor]

Sparse attention is one operator in the graph. The default backend, "eager", needs no C++ compiler.
"""

from __future__ import annotations

import argparse
import warnings

import hf_sparsify
import torch
from hf_sparsify import TopK
from hf_sparsify.evaluation.demo import demo_model_path
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--backend", default="eager")
backend = parser.parse_args().backend
warnings.filterwarnings("ignore", module="torch")

model = AutoModelForSeq2SeqLM.from_pretrained(demo_model_path("demo-t5")).eval().encoder
tokenizer = AutoTokenizer.from_pretrained(demo_model_path("demo-t5"))
inputs = tokenizer("question: where is tom? context: anna is in the park. tom is in the barn.", return_tensors="pt")
compiled = torch.compile(model, backend=backend, fullgraph=True)


@torch.no_grad()
def report(what: str) -> None:
    plain, fast = model(**inputs).last_hidden_state, compiled(**inputs).last_hidden_state
    print(f"{what:8} norm {fast.norm():.4f}, largest difference from uncompiled {(plain - fast).abs().max():.1e}")


report("dense")
with hf_sparsify.patch(compiled, TopK(k=2)) as patch:
    report("k = 2")
report("dense")
print(f"{len(patch.module_patches)} modules were sparse")
