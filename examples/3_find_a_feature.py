"""Find the latents that fire on a word, the texts they fire on elsewhere, and the tokens they promote.

Reads the dictionary of `1_train_and_look.py`.
"""

import torch
from monosem.lab import Corpus, load_model
from monosem.saes import collect, load

SENTENCE, WORD, TOKENS = "The function returns an array of integers", " array", 16_384

model = load_model("smollm2-135m")
sae = load("runs/first")

tokens = torch.tensor([model.tokenizer.encode(SENTENCE)])
position = tokens[0].tolist().index(model.tokenizer.encode(WORD)[0])
acts = model.capture(tokens, ["resid_post.12"])["resid_post.12"]
code = sae.encode(acts[0, position : position + 1])
strongest = code.indices[code.values.argsort(descending=True)][:5].sort().values.tolist()

held_out = Corpus("docs:", model.tokenizer, split="heldout", document_tokens=128)
features = collect(model, held_out, sae, tokens=TOKENS, latents=strongest)
for latent in strongest:
    print(f"\nlatent {latent} fires on {features.density[latent]:.2%} of tokens")
    print("  promotes", [token for token, _ in features.top_logits(latent).top[:6]])
    for example in features.examples(latent)[:4]:
        print("  ", example)
