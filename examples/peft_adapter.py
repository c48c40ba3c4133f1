"""A LoRA adapter on a sparse model: train it, switch it off, merge it. Needs `pip install peft`.

python examples/peft_adapter.py
"""

from __future__ import annotations

import sys

import hf_sparsify
import torch
from hf_sparsify import TopK, TopKFeedForward
from hf_sparsify.evaluation.demo import demo_model_path
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

try:
    from peft import LoraConfig, get_peft_model
except ImportError:
    print("skipped: this example needs peft (pip install peft)")
    sys.exit()

torch.manual_seed(0)
tokenizer = AutoTokenizer.from_pretrained(demo_model_path("demo-t5"))
base = AutoModelForSeq2SeqLM.from_pretrained(demo_model_path("demo-t5"))
inputs = tokenizer("question: what does anna like? context: tom likes soup. anna likes pizza.", return_tensors="pt")
inputs["labels"] = tokenizer("soup", return_tensors="pt").input_ids

# Adapter first, patch second: then the adapter of a down-projection sees what was kept, as it does once merged.
model = get_peft_model(base, LoraConfig(r=4, target_modules=["q", "v", "wo"]))
hf_sparsify.patch(model, TopK(k=8), TopKFeedForward(keep=0.25))

optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=5e-3)
for step in range(15):
    loss = model(**inputs).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 7 == 0:
        print(f"step {step:2}: loss {loss.item():.3f}")

model.eval()
with torch.no_grad():
    print(f"sparse, with adapter: loss {model(**inputs).loss.item():.3f}")
    with model.disable_adapter():
        print(f"sparse, without it:   loss {model(**inputs).loss.item():.3f}")
    hf_sparsify.unpatch(model)  # merging puts other modules in place, so the patch goes before it and comes after it
    merged = model.merge_and_unload()
    print(f"merged, dense:        loss {merged(**inputs).loss.item():.3f}")
    with hf_sparsify.patch(merged, TopK(k=8), TopKFeedForward(keep=0.25)):
        print(f"merged, sparse:       loss {merged(**inputs).loss.item():.3f}")
