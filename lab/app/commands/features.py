"""`monosem features`: what latents fire on and what they write, saved as tables."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

import tyro

from ....saes.features.collect import collect
from ...errors import InputError
from ...models.fingerprint import parameter_hash
from ..checks import check_folder
from ..command import Command, Result
from ..options import Flat, ModelText
from ..stoppable import check_stopped, stoppable
from ..used_dictionaries import UsedDictionaries


@dataclass(frozen=True)
class FeaturesCommand(Command):
    """Collect top activating examples, activation histograms and logit effects of a dictionary's latents.

    Stopped by Ctrl-C, the same command continues.
    """

    example = "monosem features runs/first runs/first/features --tokens 20000"

    dictionary: tyro.conf.Positional[Path]
    """Folder of a dictionary, of a run with exactly one, a dictionary of another library, `hf:ORG/REPO[/FOLDER]` or
    `sae-lens:RELEASE/ID`."""
    out: tyro.conf.Positional[Path]
    """Folder for the tables."""
    tokens: int = 100_000
    """Tokens to read."""
    latents: int | None = 256
    """How many latents, drawn at random; all of them where None."""
    seed: int = 0
    """Seed of the draw."""
    source: Flat[ModelText] = field(default_factory=ModelText)
    use: Flat[UsedDictionaries] = field(default_factory=UsedDictionaries)

    def run(self) -> Result:
        """Collect and save."""
        _, dictionary = self.use.read(self.dictionary)
        source = self.source.of([dictionary])
        check_folder(self.out)
        if self.out.is_dir() and any(self.out.iterdir()) and not (self.out / "features.json").is_file():
            raise InputError(f"{self.out} holds something else than features: choose another folder")
        stopped = self.out.with_name(f"{self.out.name}.stopped")
        asked = {
            "source": asdict(source), "tokens": self.tokens, "latents": self.latents, "seed": self.seed,
            "dictionary": parameter_hash(dictionary),
            **self.use.given(),
        }  # fmt: skip
        check_stopped(stopped, asked)
        self.use.check(source, [dictionary])
        model = self.use.open_model(source, [dictionary])
        site = dictionary.check(model).site
        corpus = source.open_corpus(model)
        with stoppable(stopped, asked) as run:
            features = collect(
                model, corpus, dictionary, tokens=self.tokens, latents=self.latents, site=site, seed=self.seed,
                run=run, progress=True,
            )  # fmt: skip
            folder = features.save(self.out)
        return self.result({"features": str(folder), "tokens": features.measured, "dead": len(features.dead)})
