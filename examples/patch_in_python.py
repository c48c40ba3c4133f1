"""Patch a model that is already loaded: for good, for a block, module by module.

python examples/patch_in_python.py
"""

from __future__ import annotations

import hf_sparsify
from hf_sparsify import TopK
from hf_sparsify.evaluation.demo import demo_model_path
from hf_sparsify.evaluation.sources import load_items
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

model = AutoModelForSeq2SeqLM.from_pretrained(demo_model_path("demo-t5")).eval()
tokenizer = AutoTokenizer.from_pretrained(demo_model_path("demo-t5"))

# A long story; the answer is the place that it names most often, so a few keys are not enough.
question = next(question for question in load_items("demo").items if question.kind == "place")
inputs = tokenizer(f"question: {question.question} context: {question.context}", return_tensors="pt")


def answer() -> str:
    tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    return str(tokenizer.decode(tokens[0], skip_special_tokens=True))


print(f"{inputs.input_ids.shape[1]} tokens; {question.question} {question.answers[0]}")
print("dense               ", answer())

hf_sparsify.patch(model, TopK(k=64))
print("top-k, k = 64       ", answer())
hf_sparsify.unpatch(model)  # dense again, to the bit

with hf_sparsify.patch(model, TopK(k=4), stack="encoder"):
    print("encoder, k = 4      ", answer())
print("after the block     ", answer())

# A plan names modules, each with its own method; what it does not name stays dense.
plan = {
    "encoder.block.1.layer.0.SelfAttention": TopK(keep=0.25),
    "decoder.block.0.layer.1.EncDecAttention": TopK(k=8, protect_first=1),
}
with hf_sparsify.patch(model, plan) as patch, patch.metered(hf_sparsify.Meter()) as meter:
    print("a plan              ", answer())
for name, module in meter.modules.items():
    print(f"  {name} kept {module.kept / module.visible:.0%} of what it could see")
