"""Plant faults in a copy of the code, one at a time, and see that the test named beside each fails on it.

    make mutate                                    all faults
    python tests/support/mutate.py conformal tpp   those with one of these words in their file or their description

Prints a table: the fault, died or LIVED, seconds, the test that killed it. The exit status is 1 if a fault lives, if
the text that it replaces does not stand exactly once in its file, or if a named test fails without any fault.

The working tree is never edited. Every run of tests is a fork of a process that has imported the libraries but nothing
of monosem, so that a fault costs little more than its test.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
PACKAGES = ("lab", "saes", "probes", "interventions", "kernels")
COPIED = (*PACKAGES, "tests", "examples", "docs", "pyproject.toml", "README.md", "CONTRIBUTING.md")
LONGEST = 600
"""Seconds after which a run of tests is stopped."""
LOADED = (
    *("torch._dynamo", "transformers.modeling_utils", "datasets", "numba.extending", "scipy.stats", "jaxtyping"),
    *("sklearn.linear_model", "sklearn.model_selection", "tyro", "hypothesis.strategies", "pytest"),
)
"""Libraries that are imported once, before the forks."""


class Fault(NamedTuple):
    """One fault: in `file`, `new` stands in the place of `old`, which is there exactly once."""

    what: str
    file: str
    old: str
    new: str
    test: str
    """Test that must fail, below the folder `tests`; without brackets its cases are run, up to the first failure."""


# fmt: off
FAULTS = (
    # kernels
    Fault("int8 is never chosen", "kernels/dispatch.py",
          'and _cpu_has("vnni"):',
          'and _cpu_has("none"):',
          "kernels/test_dispatch.py::test_the_instructions_of_a_cpu_choose_the_products"),
    Fault("bf16 is never chosen", "kernels/dispatch.py",
          'return Choice(step, "bf16", f"{reason}; {dev',
          'return Choice(step, "fp32", f"{reason}; {dev',
          "kernels/test_dispatch.py::test_the_instructions_of_a_cpu_choose_the_products"),
    Fault("offset of an encoder row in int32", "kernels/gpu/update.py",
          "start = latent.to(tl.int64) * D ",
          "start = latent.to(tl.int32) * D ",
          "kernels/test_offsets.py"),
    Fault("offset of a decoder row in int32", "kernels/gpu/update.py",
          "start_out = latent.to(tl.int64) * D_OUT",
          "start_out = latent.to(tl.int32) * D_OUT",
          "kernels/test_offsets.py"),
    Fault("decode gathers with int32 offsets", "kernels/gpu/decode.py",
          "latents = tl.load(indices + start + slots, mask=there, other=0).to(tl.int64)",
          "latents = tl.load(indices + start + slots, mask=there, other=0)",
          "kernels/test_offsets.py"),
    Fault("rows of tokens at int32 offsets", "kernels/gpu/pieces.py",
          "other=0).to(tl.int64)\n",
          "other=0)\n",
          "kernels/test_offsets.py"),
    Fault("rows of a selection at int32 offsets", "kernels/gpu/keys.py",
          "row.to(tl.int64) * stride",
          "row * stride",
          "kernels/test_offsets.py"),
    Fault("Gram rows at int32 offsets", "kernels/gpu/pursuit.py",
          "other = gram + column.to(tl.int64) * n",
          "other = gram + column * n",
          "kernels/test_offsets.py"),
    Fault("Adam on the GPU without the second bias correction", "kernels/gpu/update.py",
          "root = 1.0 / tl.sqrt(tl.load(scalars + 4).to(tl.float32))",
          "root = 1.0",
          "kernels/test_gpu_step.py::test_update_equals_the_reference_over_steps[24-dense]"),
    Fault("decoder gradients are not projected", "kernels/update.py",
          "grads.W_dec.sub_((grads.W_dec * weights.W_dec).sum(1, keepdim=True) * weights.W_dec)",
          "grads.W_dec.sub_(0)",
          "kernels/test_step.py::test_update_equals_dense_gradients_and_adam_over_steps[False]"),
    Fault("the aid's loss is over the residual's square, not its variance", "kernels/auxk.py",
          "(residual.square().sum() - len(residual) * residual.mean(0).square().sum())",
          "residual.square().sum()",
          "saes/training/test_trainer.py::test_dead_latent_gradients_equal_autograd_and_reach_the_encoder[3]"),
    Fault("the aid's codes at zero get gradients", "kernels/auxk.py",
          ".mul_(codes > 0)",
          "",
          "saes/training/test_trainer.py::test_dead_latent_gradients_equal_autograd_and_reach_the_encoder[3]"),
    Fault("BatchTopK keeps k more", "kernels/batch_topk.py",
          "min(batch * k, len(pool.values))",
          "min(batch * k + k, len(pool.values))",
          "kernels/test_topk.py::test_batch_topk_equals_a_sort_of_the_batch"),
    Fault("rows cut short are not encoded again", "kernels/batch_topk.py",
          "if not len(rows):",
          "if True:",
          "kernels/test_topk.py::test_batch_topk_equals_a_sort_of_the_batch"),
    # training
    Fault("extra parameters step without Adam's bias correction", "saes/architectures/objective.py",
          "p.sub_(lr / correct1 * first / ((second / correct2).sqrt() + adam.eps))",
          "p.sub_(lr * first / (second.sqrt() + adam.eps))",
          "saes/architectures/test_objective.py::test_small_parameters_step_as_torchs_adam"),
    Fault("extra parameters step with the weights' beta2", "saes/architectures/objective.py",
          "adam if self.extra_beta2 is None else replace(adam, beta2=self.extra_beta2)",
          "adam",
          "saes/architectures/test_objective.py::test_extra_parameters_have_their_own_second_decay"),
    Fault("resampling draws rows uniformly", "saes/training/dead_latents.py",
          "odds = squares.double().square().cpu()",
          "odds = torch.ones_like(squares.double()).cpu()",
          "saes/training/test_dead_latents.py::test_rows_are_drawn_by_the_square_of_their_squared_error"),
    Fault("resampling draws rows by error, not its square", "saes/training/dead_latents.py",
          "odds = squares.double().square().cpu()",
          "odds = squares.double().cpu()",
          "saes/training/test_dead_latents.py::test_rows_are_drawn_by_the_square_of_their_squared_error"),
    Fault("resampled latents keep the optimizer's moments", "saes/training/dead_latents.py",
          "        self.optimizer.forget(latents)\n",
          "",
          "saes/training/test_dead_latents.py::test_dead_latents_start_anew_on_rows_with_large_errors"),
    Fault("a latent that fires stays idle", "saes/training/dead_latents.py",
          "        self.since_fired.masked_fill_(fired > 0, 0)\n",
          "",
          "saes/training/test_dead_latents.py::test_silent_gates_stay_silent_without_being_woken[relu-adam]"),
    Fault("b_dec ignores that the encoder subtracts it", "saes/training/optimizers/fused.py",
          "to_bias - updated.to_input if reads_bias",
          "to_bias if reads_bias",
          "saes/training/test_trainer.py::test_one_step_is_gradient_descent_on_the_normalised_loss"),
    Fault("clipping leaves b_dec unclipped", "saes/training/optimizers/fused.py",
          "to_bias, scale = to_bias * factor, scale * factor",
          "scale = scale * factor",
          "saes/architectures/test_architectures.py::"
          "test_every_gradient_of_a_step_equals_autograd_on_the_dense_loss[0.001-topk-options0]"),
    Fault("Muon steps with Nesterov's momentum off", "saes/training/optimizers/muon.py",
          'adjust_lr_fn="match_rms_adamw"',
          'adjust_lr_fn="match_rms_adamw", nesterov=False',
          "saes/training/test_optimizers.py::test_muon_is_torchs_muon_on_the_dense_gradient"),
    Fault("Muon with another momentum", "saes/training/optimizers/muon.py",
          "MUON_MOMENTUM = 0.95",
          "MUON_MOMENTUM = 0.9",
          "saes/training/test_optimizers.py::test_muon_is_torchs_muon_on_the_dense_gradient"),
    Fault("decay begins too early", "saes/architectures/schedules.py",
          "max(0.0, (1 - rows / total) / decay)",
          "max(0.0, (1 - rows / total))",
          "saes/training/test_trainer.py::test_learning_rate_rises_holds_and_falls"),
    Fault("scales are measured about zero", "saes/architectures/units.py",
          "(x - x.mean(0)).square().mean().sqrt()",
          "x.square().mean().sqrt()",
          "saes/training/test_trainer.py::test_rows_that_are_all_equal_are_refused"),
    Fault("the L0 controller integrates the wrong way", "saes/architectures/schedules.py",
          "self.log_weight + INTEGRAL * error)",
          "self.log_weight - INTEGRAL * error)",
          "saes/architectures/test_architectures.py::test_a_planted_dictionary_is_recovered[gated-options6]"),
    Fault("k jumps to its end", "saes/training/config.py",
          "round(self.k_start + (k - self.k_start) * ramp(rows / self.rows, 0.0, self.k_anneal))",
          "round(k)",
          "saes/training/test_optimizers.py::test_k_falls_along_a_line_and_stays"),
    Fault("the mean of weights is the last weights", "saes/training/weight_average.py",
          "1 - min(self.decay, (1 + self.steps) / (10 + self.steps))",
          "1.0",
          "saes/training/test_optimizers.py::test_the_mean_is_that_of_the_weights_after_each_step"),
    Fault("a transcoder's loss is over squares, not their variance", "saes/training/trainer.py",
          "variance = total_variance(y)",
          "variance = y.square().sum()",
          "saes/architectures/test_transcoders.py::"
          "test_every_gradient_of_a_step_equals_autograd[None-topk-options0]"),
    Fault("thresholds keep the units of training", "saes/architectures/jumprelu.py",
          "        self.theta /= scale\n",
          "",
          "saes/architectures/test_architectures.py::"
          "test_the_asked_l0_is_reached_on_held_out_rows[jumprelu-options3]"),
    # streams and text
    Fault("the buffer serves in order", "lab/streams/buffer.py",
          "self._order = torch.randperm(self.rows, generator=self._generator)",
          "self._order = torch.arange(self.rows)",
          "lab/streams/test_buffer.py::test_the_shuffle_spans_the_whole_buffer"),
    Fault("a permutation is served to its end", "lab/streams/buffer.py",
          "self._stop = self.rows // 2 // self.batch * self.batch",
          "self._stop = self.rows // self.batch * self.batch",
          "lab/streams/test_buffer.py::test_rows_meet_others_that_came_more_than_a_buffer_before"),
    Fault("the state of a buffer forgets its generator", "lab/streams/buffer.py",
          'self._generator.set_state(state["generator"])',
          "pass",
          "lab/streams/test_buffer.py::test_state_continues_exactly_from_any_batch"),
    Fault("rows above the norm limit are served", "lab/streams/token_stream.py",
          "rows = rows & (norms <= limit)",
          "rows = rows & (norms <= norms)",
          "lab/streams/test_activation_stream.py"),
    Fault("a shard is read without its checksum", "lab/streams/store.py",
          'if crc32(path) != entry["crc32"]:',
          "if False:",
          "lab/streams/test_store.py::test_a_flipped_bit_is_found_before_it_is_served"),
    Fault("the held-out side of a corpus is that of training", "lab/text/corpus.py",
          'self.config.heldout) == (side == "heldout")',
          'self.config.heldout) == (side != "heldout")',
          "lab/text/test_corpus.py::test_split_is_by_document_disjoint_and_keeps_copies_together"),
    Fault("the state of a packed row is its document's start", "lab/text/packing.py",
          "after=start._replace(offset=offset))\n                filled",
          "after=start)\n                filled",
          "lab/text/test_corpus.py::test_packing_known_answer"),
    Fault("the norm limit is a multiple of the mean norm", "lab/streams/harvest.py",
          "median()",
          "mean()",
          "lab/streams/test_activation_stream.py::test_norm_limit_is_a_multiple_of_the_median_of_the_first_rows"),
    # evaluation and analysis
    Fault("losses at the first token of the next document", "saes/edit.py",
          " & (batch.doc[:, :-1] == batch.doc[:, 1:])",
          "",
          "saes/evaluation/test_splicing.py::test_predictions_stay_inside_a_document"),
    Fault("mean ablation writes half the mean", "saes/evaluation/shared.py",
          "mean = self.rows.measures[next(iter(self.keys.values()))].mean\n",
          "mean = self.rows.measures[next(iter(self.keys.values()))].mean / 2\n",
          "saes/evaluation/test_splicing.py::test_the_mean_ablation_writes_the_mean_of_the_measured_rows"),
    Fault("zero ablation halves the activations", "saes/evaluation/splicing.py",
          '"zero": torch.zeros_like,',
          '"zero": lambda rows: rows / 2,',
          "saes/evaluation/test_splicing.py::test_scores_of_dictionaries_that_are_the_ablations"),
    Fault("KL is taken the other way round", "saes/evaluation/splicing.py",
          "(reference.exp() * (reference - log_p)).sum(1)",
          "(log_p.exp() * (log_p - reference)).sum(1)",
          "saes/evaluation/test_splicing.py::test_losses_by_hand"),
    Fault("FVU of an evaluation without the mean", "saes/evaluation/reconstruction.py",
          'return float(sums["square"] / sums["rows"] - mean @ mean)',
          'return float(sums["square"] / sums["rows"])',
          "saes/evaluation/test_reconstruction.py::test_the_mean_has_fvu_one_and_zero_has_the_second_moment"),
    Fault("FVU of one of several sites without the mean", "saes/evaluation/reconstruction.py",
          '/ sums["rows"] - mean @ mean)\n    return ratio',
          '/ sums["rows"])\n    return ratio',
          "saes/architectures/test_crosscoders.py::test_the_fvu_of_every_source_stands_beside_the_total"),
    Fault("documents of the fitted nulls are measured", "saes/evaluation/reading.py",
          "fresh = ~torch.isin(rows.origin[:, 0], self.fitted)",
          "fresh = rows.origin[:, 0] >= 0",
          "saes/evaluation/test_splicing.py::test_reconstruction_scores_are_those_of_the_rows"),
    Fault("documents of the fitted nulls are spliced", "saes/evaluation/shared.py",
          ", without=self.rows.fitted)",
          ")",
          "saes/evaluation/test_splicing.py::test_the_mean_ablation_writes_the_mean_of_the_measured_rows"),
    Fault("intervals of 90 %", "lab/evidence.py",
          "[0.025, 0.975]",
          "[0.05, 0.95]",
          "lab/test_evidence.py::test_intervals_are_those_of_95_percent"),
    Fault("a null inside the interval counts as beaten", "lab/evidence.py",
          "return unbeaten(self.value, self.nulls, self.better, self.interval)",
          "return unbeaten(self.value, self.nulls, self.better, None)",
          "lab/test_evidence.py::test_the_whole_interval_has_to_beat_the_null"),
    Fault("curves over L0 are interpolated without logarithms", "saes/evaluation/matched_l0.py",
          "np.interp(math.log(l0), np.log(self.l0), self.values)",
          "np.interp(l0, self.l0, self.values)",
          "saes/evaluation/test_matched_l0.py::test_between_two_points_the_score_is_linear_in_log_l0"),
    Fault("noise between seeds without sqrt(2)", "saes/evaluation/matched_l0.py",
          "math.sqrt(2 * squares / sum(freedom))",
          "math.sqrt(squares / sum(freedom))",
          "saes/evaluation/test_matched_l0.py::test_a_gap_by_hand"),
    Fault("the untrained null has another L0", "saes/evaluation/nulls.py",
          "k = max(1, round(active / len(x)))",
          "k = max(1, round(active / len(x) / 2))",
          "saes/evaluation/test_splicing.py::test_every_score_has_value_interval_nulls_and_n"),
    Fault("detection's threshold is set on scored windows", "saes/autointerp/detection.py",
          "cut = threshold(judge.scores(explanation, trial.shown + trial.quiet), _fires(trial.shown, trial.quiet))",
          "cut = threshold(judge.scores(explanation, trial.firing + trial.silent), "
          "_fires(trial.firing, trial.silent))",
          "saes/autointerp/test_autointerp.py::test_thresholds_come_from_the_explaining_half"),
    Fault("the frequency null is set on scored windows", "saes/autointerp/detection.py",
          "known, fires = self.scores(trial.shown + trial.quiet), _fires(trial.shown, trial.quiet)",
          "known, fires = self.scores(trial.firing + trial.silent), _fires(trial.firing, trial.silent)",
          "saes/autointerp/test_autointerp.py::test_thresholds_come_from_the_explaining_half"),
    Fault("texts are on both sides of detection", "saes/autointerp/windows.py",
          "scored[w] = key not in seen",
          "scored[w] = True",
          "saes/autointerp/test_autointerp.py::test_no_document_and_no_text_is_on_both_sides[60]"),
    Fault("relative norms are those of the first source", "saes/analysis/diffing.py",
          "return second / (first + second).clamp_min(1e-12)",
          "return first / (first + second).clamp_min(1e-12)",
          "saes/analysis/test_diffing.py::test_the_planted_shares_are_read_off"),
    Fault("latent scaling leaves the latent's own part out", "saes/analysis/diffing.py",
          "fits[0, source] += energy * (written[latents] * long).sum(1)",
          "fits[0, source] += 0",
          "saes/analysis/test_diffing.py::test_shrunk_and_decoupled_latents_are_not_genuine"),
    Fault("the error term is lost where a code changes", "saes/edit.py",
          "own = apart if whole else apart.within(block.latents)",
          "own = change(code) if whole else apart.within(block.latents)",
          "saes/test_edit.py::test_a_latent_of_topk_is_set_after_the_selection[fp32]"),
    # probes
    Fault("TPP's probes are fitted on test texts", "probes/tasks/tpp.py",
          "probes = fit_linear(rows.means[train], classes[train], config.fit",
          "probes = fit_linear(rows.means[test], classes[test], config.fit",
          "probes/tasks/test_tpp.py::test_probes_and_nulls_see_training_texts_alone"),
    Fault("SCR's oracle is fitted on test texts", "probes/tasks/tpp.py",
          "oracle = fit_linear(means[train], both[train], config.fit",
          "oracle = fit_linear(means[test], both[test], config.fit",
          "probes/tasks/test_tpp.py::test_probes_and_nulls_see_training_texts_alone"),
    Fault("nulls of TPP are fitted on test texts", "probes/tasks/tpp.py",
          "self.fitted = x[torch.isin(self.text, train)]",
          "self.fitted = x[torch.isin(self.text, test)]",
          "probes/tasks/test_tpp.py::test_probes_and_nulls_see_training_texts_alone"),
    Fault("letter probes are fitted on test words", "probes/tasks/absorption.py",
          "probes = fit_linear(x[train], told[train], config.probe",
          "probes = fit_linear(x[test], told[test], config.probe",
          "probes/tasks/test_absorption.py::test_probes_and_main_latents_come_from_training_words"),
    Fault("main latents are chosen on test words", "probes/tasks/absorption.py",
          "z, W_dec = dense_codes(dictionary, task.train), decoder(dictionary, task.train)\n"
          "    told = torch.stack([task.train_letters",
          "z, W_dec = dense_codes(dictionary, task.test), decoder(dictionary, task.train)\n"
          "    told = torch.stack([task.test_letters",
          "probes/tasks/test_absorption.py::test_probes_and_main_latents_come_from_training_words"),
    Fault("RAVEL's masks are trained on test swaps", "probes/tasks/ravel.py",
          "swaps = Swaps(*(column[part] for column in train))",
          "swaps = Swaps(*(column[part % len(test.prompt)] for column in test))",
          "probes/tasks/test_ravel.py::test_masks_are_trained_on_the_training_swaps"),
    Fault("conformal p-values leave ties out", "probes/truth/conformal.py",
          'strangeness[:, label], side="left")',
          'strangeness[:, label], side="right")',
          "probes/truth/test_conformal.py::test_ties_count_as_as_strange"),
    Fault("conformal p-values do not count the row itself", "probes/truth/conformal.py",
          "p[:, label] = (above + 1) / (len(ordered) + 1)",
          "p[:, label] = above / len(ordered)",
          "probes/truth/test_conformal.py::test_p_values_worked_out_by_hand"),
    Fault("conformal sets keep a label at alpha", "probes/truth/conformal.py",
          "return self.p_values(strangeness) > self.alpha",
          "return self.p_values(strangeness) >= self.alpha",
          "probes/truth/test_conformal.py::test_ties_count_as_as_strange"),
    Fault("AUC without ties", "probes/fitting/sparse.py",
          "negative.cumsum() - negative / 2",
          "negative.cumsum()",
          "probes/test_measure.py::test_a_planted_label_beats_its_nulls_and_a_random_one_does_not"),
    Fault("splits of probes part groups", "probes/fitting/splits.py",
          "StratifiedGroupKFold(folds, shuffle=True, random_state=state).split(y[:, None], y, groups))",
          "StratifiedGroupKFold(folds, shuffle=True, random_state=state).split(y[:, None], y, np.arange(len(y))))",
          "probes/test_measure.py::test_a_group_that_leaks_is_not_split"),
    Fault("shuffled labels touch the test side", "probes/measure.py",
          "y[torch.from_numpy(train)] = y[torch.from_numpy(train)[torch.randperm(len(train), generator=rng)]]",
          "y = y",
          "probes/test_measure.py::test_a_planted_label_beats_its_nulls_and_a_random_one_does_not"),
    Fault("calibration learns from units that its probe has seen", "probes/fitting/calibration.py",
          "probe = fit(kind, train.take(others), config)",
          "probe = fit(kind, train, config)",
          "probes/test_measure.py::test_chances_of_what_was_learnt_by_heart_are_even[platt]"),
    Fault("permuted p can be zero", "probes/geo/statistics.py",
          "tail = (1 + np.minimum(above, below)) / (1 + permutations)",
          "tail = np.minimum(above, below) / permutations",
          "probes/geo/test_statistics.py::test_permutations_see_order_of_both_signs"),
    Fault("coverage of classes is their mean", "probes/truth/scores.py",
          "return float(np.min(np.bincount(right, weights * held",
          "return float(np.mean(np.bincount(right, weights * held",
          "probes/truth/test_scores.py::test_coverage_of_classes_is_that_of_the_worst_covered_one"),
    Fault("the best place is reported on the units that chose it", "probes/best_place.py",
          "scores = evidence_of(best.read[reporting], told.take(reporting)",
          "scores = evidence_of(best.read[choosing], told.take(choosing)",
          "probes/test_best_place.py::test_the_best_of_many_places_of_noise_is_reported_as_noise"),
    Fault("one group stands in many bootstrap units", "probes/measure.py",
          "group = np.unique(labels.groups.numpy(), return_inverse=True)[1].reshape(-1)",
          "group = np.arange(len(y))",
          "probes/test_measure.py::test_a_group_that_leaks_is_not_split"),
    # formats
    Fault("a sparsify transcoder reads the module's output", "saes/formats/sparsify.py",
          '"mlp_out": "mlp_in"}',
          '"mlp_out": "mlp_out"}',
          "saes/formats/test_sparsify.py::"
          "test_files_that_sparsify_trained_stand_where_it_read_and_predicted[True-layers.1.mlp]"),
    Fault("a centred encoder is moved the wrong way", "saes/formats/portable.py",
          "(1 if centred else -1)",
          "(-1 if centred else 1)",
          "saes/formats/test_files.py::test_centred_dictionaries_are_folded_for_gemma_scope[gemma-scope-relu]"),
    Fault("decoder norms do not reach the encoder's biases", "saes/formats/portable.py",
          '"b_enc": norms, "b_mag": norms}',
          '"b_mag": norms}',
          "saes/formats/test_sae_lens.py::test_a_decoder_of_unit_rows_is_the_same_function"),
    Fault("decoder norms do not reach the thresholds", "saes/formats/portable.py",
          '(tensors["threshold"].double() * norms).float()',
          'tensors["threshold"]',
          "saes/formats/test_sae_lens.py::test_a_decoder_of_unit_rows_is_the_same_function"),
    Fault("log thresholds are read as thresholds", "saes/formats/sae_lens.py",
          'tensors.pop("log_threshold").exp()',
          'tensors.pop("log_threshold")',
          "saes/formats/test_sae_lens.py::test_logarithms_of_thresholds_and_a_scaling_factor_of_ones_are_read"),
    Fault("group sizes are read as prefixes", "saes/formats/dictionary_learning.py",
          'tuple(accumulate(config.pop("group_sizes")))',
          'tuple(config.pop("group_sizes"))',
          "saes/formats/test_dictionary_learning.py::"
          "test_dictionary_learning_files_run_here_and_go_back_unchanged[MatryoshkaBatchTopKSAE-24]"),
    # benchmarks
    Fault("FVU of benchmarks without the mean", "lab/app/bench/score.py",
          "(held - held.mean(0)).square().sum()",
          "held.square().sum()",
          "lab/app/test_bench_peers.py::test_fvu_is_about_the_mean"),
    Fault("a lead-in step for ours only", "lab/app/bench/step.py",
          "lead_in=leads)",
          'lead_in={name: lead if name == "monosem" else int for name, lead in leads.items()})',
          "lab/app/test_bench_peers.py::test_every_contestant_of_a_step_gets_the_same_lead_in"),
    Fault("held-out rows of a store are trained on", "lab/app/rows.py",
          "acts[~held][:wanted]",
          "acts[:wanted]",
          "lab/app/test_rows.py::test_no_document_of_a_store_is_trained_on_and_held_out"),
    Fault("held-out text is training text", "lab/app/rows.py",
          'source.open_corpus(model, split="heldout")',
          'source.open_corpus(model, split="train")',
          "lab/app/test_rows.py::test_held_out_text_is_not_that_of_training"),
    Fault("the rate of a peer is chosen on the rows reported", "lab/app/bench/architectures.py",
          'return min(tried, key=lambda rate: tried[rate]["validation"]["fvu"])',
          'return min(tried, key=lambda rate: tried[rate]["test"]["fvu"])',
          "lab/app/test_bench_peers.py::test_rates_are_chosen_on_other_rows_than_those_reported"),
    Fault("the rate of a racing peer is chosen on the rows reported", "lab/app/bench/train.py",
          "fvu(racers[racer].reconstruct, validation))",
          "fvu(racers[racer].reconstruct, test))",
          "lab/app/test_bench_peers.py::"
          "test_the_rate_of_a_racing_peer_is_chosen_on_other_rows_than_those_reported"),
    Fault("ratio of rates upside down", "lab/app/bench/train.py",
          'rates["monosem"] / rate for',
          'rate / rates["monosem"] for',
          "lab/app/test_bench.py::test_training_beside_a_peer"),
)
# fmt: on


class Outcome(NamedTuple):
    """End of one run: the tests that failed, why there is no answer if there is none, and seconds."""

    failed: list[str]
    broken: str
    seconds: float


class Recorder:
    """A plugin of pytest that keeps the names of tests that fail, and of files that cannot be collected."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.broken: list[str] = []
        self.ran = 0

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Keep a test that fails, or whose fixture does."""
        self.ran += report.when == "call" and not report.skipped
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        """Keep a file that cannot be collected: a fault that breaks an import has not died by a test."""
        if report.failed:
            self.broken.append(f"{report.nodeid} cannot be collected")


def copied(folder: Path) -> Path:
    """A copy of the working tree, and beside it a folder from which `monosem` is imported out of the copy."""
    tree = folder / "tree"
    tree.mkdir()
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name)
        else:
            shutil.copy2(ROOT / name, tree / name)
    (folder / "path" / "monosem").mkdir(parents=True)
    for package in PACKAGES:
        (folder / "path" / "monosem" / package).symlink_to(tree / package)
    return tree


@contextlib.contextmanager
def planted(tree: Path, fault: Fault) -> Iterator[None]:
    """The copy with a fault in it."""
    path = tree / fault.file
    text, stat = path.read_text(), path.stat()
    path.write_text(text.replace(fault.old, fault.new))
    try:
        yield
    finally:
        path.write_text(text)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # bytecode of the text is fresh again


def misplaced(tree: Path, fault: Fault) -> str:
    """The reason why a fault cannot be planted; empty if it can."""
    path = tree / fault.file
    found = path.read_text().count(fault.old) if path.is_file() else 0
    return "" if found == 1 else f"the text to replace stands {found} times in {fault.file}"


def run(tree: Path, tests: Sequence[str], *, first: bool) -> Outcome:
    """Run tests of the copy in a fork; up to the first that fails if `first`."""
    start, outcome, log = time.monotonic(), tree.parent / "outcome.json", tree.parent / "log"
    outcome.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        try:
            _test(tree, tests, outcome, first)
        finally:
            os._exit(0)
    ended = 0
    while not ended and time.monotonic() - start < LONGEST:
        time.sleep(0.05)
        ended, _ = os.waitpid(child, os.WNOHANG)
    if not ended:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
    seconds = time.monotonic() - start
    if not outcome.exists():
        return Outcome([], "the tests crashed" if ended else f"stopped after {LONGEST} s", seconds)
    return Outcome(**json.loads(outcome.read_text()), seconds=seconds)


def _test(tree: Path, tests: Sequence[str], outcome: Path, first: bool) -> None:
    """Run pytest on the copy, and write what failed."""
    import pytest

    path = str(tree.parent / "path")
    os.chdir(tree)
    os.environ.update(PYTHONPATH=path, PYTHONDONTWRITEBYTECODE="1")
    sys.path.insert(0, path)
    sys.dont_write_bytecode = True
    recorder, options = Recorder(), ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", *(["-x"] if first else [])]
    pytest.main([*options, f"--rootdir={tree}", *(f"tests/{test}" for test in tests)], plugins=[recorder])
    ours = [str(module.__file__) for name, module in sys.modules.items() if name.startswith("monosem.")]
    if strange := [file for file in ours if not file.startswith(path)]:
        recorder.broken.append(f"{strange[0]} was tested, which is not in the copy")
    elif not recorder.ran and not recorder.failed:
        recorder.broken.append("no test ran")
    outcome.write_text(json.dumps({"failed": recorder.failed, "broken": ", ".join(recorder.broken)}))


def say(*words: object) -> None:
    """Print one line at once."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def main(words: Sequence[str]) -> int:
    """Plant the faults that have one of the words, or all there are; 0 if every one died."""
    faults = [fault for fault in FAULTS if not words or any(word in f"{fault.file} {fault.what}" for word in words)]
    if not faults:
        say("no fault has", " or ".join(words), "in its file or its description")
        return 1
    os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    if not Path("/dev/nvidia0").exists():
        os.environ["TRITON_INTERPRET"] = "1"  # as `tests/conftest.py` has it, and before Triton is imported
    for name in LOADED:
        importlib.import_module(name)
    begin, lived, width = time.monotonic(), 0, max(len(fault.what) for fault in faults)
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        tree = copied(Path(folder))
        tests = list(dict.fromkeys(fault.test for fault in faults))
        whole = run(tree, tests, first=False)
        for reason in (*whole.failed, *filter(None, [whole.broken])):
            say("without any fault:", reason)
        say(f"{len(tests)} tests without any fault, {whole.seconds:.0f} s")
        for fault in faults:
            outcome = Outcome([], misplaced(tree, fault), 0.0)
            if not outcome.broken:
                with planted(tree, fault):
                    outcome = run(tree, [fault.test], first=True)
            died = bool(outcome.failed) and not outcome.broken
            lived += not died
            by = outcome.failed[0].removeprefix("tests/") if died else outcome.broken or f"{fault.test} passes"
            say(f"{fault.what:{width}}  {'died ' if died else 'LIVED'}  {outcome.seconds:5.1f} s  {by}")
    say(f"{len(faults) - lived} of {len(faults)} faults died, {time.monotonic() - begin:.0f} s")
    return 1 if lived or whole.failed or whole.broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
