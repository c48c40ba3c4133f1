"""Keep only the largest activations of every feed-forward layer: how many does the model need?

python examples/feed_forward.py
"""

from __future__ import annotations

import hf_sparsify
import torch
from hf_sparsify import Meter, TopKFeedForward
from hf_sparsify.evaluation.demo import demo_model_path
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

model = AutoModelForSeq2SeqLM.from_pretrained(demo_model_path("demo-t5")).eval()
tokenizer = AutoTokenizer.from_pretrained(demo_model_path("demo-t5"))
inputs = tokenizer(
    "question: what does anna like? context: tom likes soup. anna likes pizza. tom is in the barn. anna has a red hat.",
    return_tensors="pt",
)
start = torch.tensor([[model.config.decoder_start_token_id]])


@torch.no_grad()
def answer_probabilities() -> torch.Tensor:
    return model(**inputs, decoder_input_ids=start).logits[0, 0].softmax(-1)


dense = answer_probabilities()
word = int(dense.argmax())
print(f"dense: {tokenizer.decode(word)} with probability {dense[word]:.3f}")
print("kept of d_ff      share   probability of the same answer")
for k in (256, 64, 32, 16, 8, 4, 1):
    # None leaves attention as it is.
    with hf_sparsify.patch(model, None, TopKFeedForward(k=k)) as patch, patch.metered(Meter()) as meter:
        found = answer_probabilities()
    share = meter.total().summary()["activations_kept_share"]
    print(f"{k:4} of {model.config.d_ff:<8} {share:7.1%}   {found[word]:.3f}")
