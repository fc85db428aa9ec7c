"""Tables mark scores that are no better than one of their nulls, and name scores as the pages do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from monosem.interventions.pruning.activation_sparsity.tables import cores_table, curves_table, losses_table
from monosem.lab.evidence import Evidence
from monosem.saes.analysis.atoms.results import AtomsReport
from monosem.saes.sweeps.table import cells

MARK = " †"


def evidence(value: float, null: float, better: str = "lower") -> Evidence:
    return Evidence("score", value, nulls={"untrained": null}, n=8, better=better)


def test_a_sweep_marks_what_is_judged_and_names_its_scores() -> None:
    row = {"name": "a", "train_fvu": 0.5, "fvu": 0.9, "fvu_null_pca": 0.4, "l0": 4.0, "l0_null_pca": 4.0,
           "ce_recovered_zero": 0.9, "ce_recovered_zero_null_pca": 0.95, "kl": 0.1, "kl_null_pca": 0.2}  # fmt: skip
    heading, line = cells([row])
    shown = dict(zip(heading, line, strict=True))
    assert heading == ["name", "L0", "FVU", "CE recovered, zero", "KL", "nulls of FVU"]
    assert shown["FVU"] == "0.9" + MARK and shown["CE recovered, zero"] == "0.9" + MARK
    assert shown["L0"] == "4" and shown["KL"] == "0.1" and shown["nulls of FVU"] == "PCA 0.4"


def test_the_atoms_report_marks() -> None:
    scores = {"r2": evidence(0.3, 0.5, "higher"), "r2_seen": evidence(0.7, 0.5, "higher"),
              "coherence_max": evidence(0.2, 0.4), "l0": evidence(4.0, 4.0)}  # fmt: skip
    subject: Any = SimpleNamespace(
        name="a", scores=scores, threshold=None, trained_rows=None, verdict=SimpleNamespace(by_maximum=False)
    )
    product: Any = None
    heading, line = AtomsReport([subject], "resid_post.1", "", product).table()
    shown = dict(zip(heading, line, strict=True))
    assert shown["R2 fresh"].endswith(MARK) and not shown["R2 seen"].endswith(MARK) and shown["L0"] == "4.0"


def test_activation_sparsity_marks() -> None:
    errors = {("abs", 1.0): 0.5, ("random", 1.0): 0.4}

    class Map:
        module = SimpleNamespace(name="mlp.down_proj")
        best = {0.5: 1.0}  # noqa: RUF012

        def at(self, sparsity: float, method: str, share: float = 1.0) -> Any:
            return SimpleNamespace(
                error=evidence(errors.get((method, share), 0.3), 0), recall=evidence(0.2, 0.1, "higher")
            )

    curves: Any = SimpleNamespace(modules=[Map()])
    _, line = curves_table(curves, 0.5)
    assert line[1] == "0.500" + MARK and line[5] == "0.400" and not line[8].endswith(MARK)
    _, line = losses_table({"all": {"half": evidence(0.5, 0.4)}})
    assert line == ["all", "0.500" + MARK, "0.400"]
    reports: Any = [SimpleNamespace(layer=1, scores={"recall": evidence(0.2, 0.1, "higher")})]
    assert cores_table(reports)[1] == ["recall", "0.200 (0.100)"]
