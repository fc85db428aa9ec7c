"""Train on a model and texts of your own: any torch module with a tokenizer, any folder of .txt and .md files."""

from pathlib import Path

import torch
from monosem.lab import ActivationStream, Corpus, load_model, train
from monosem.saes import Trainer, load
from transformers import LlamaConfig, LlamaForCausalLM

ROWS, LATENTS = 20_000, 1024
TEXTS = Path(__file__).parents[1] / "docs"

torch.manual_seed(0)
tokenizer = load_model("smollm2-135m").tokenizer
module = LlamaForCausalLM(
    LlamaConfig(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=4,
                num_attention_heads=4)
)  # fmt: skip
model = load_model(module, tokenizer=tokenizer)  # a folder, a hub name or a .gguf file does as well
print(model.sites())

text = Corpus(f"text:{TEXTS}", tokenizer)
stream = ActivationStream(model, text, ["resid_mid.2", "mlp_out.2"], batch=512, buffer=2048, reuse=4)
sae = Trainer.on(stream, "mlp_out.2", "batchtopk", n_latents=LATENTS, k=16, rows=ROWS)
transcoder = Trainer.on(stream, "resid_mid.2 -> mlp_out.2", "topk", n_latents=LATENTS, k=16, rows=ROWS)
run = train(stream, [sae, transcoder], "runs/own")  # one forward pass feeds both

for folder in sorted((run.folder / "dictionaries").iterdir()):
    print(load(folder))
