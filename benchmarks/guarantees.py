"""The table of guarantees: run the tests behind each guarantee and count their cases."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.documents import write_part
from benchmarks.timing import ROOT

FINDER = "finder/test_lr_finder.py"
GUARANTEES = "checkpoint/test_guarantees.py"
RESUME = "checkpoint/test_resume.py"
TESTS: dict[str, list[str]] = {
    "`lr_find` restores weights, buffers, gradients, optimizer, random generators, data order and training flags": [
        f"{FINDER}::test_everything_is_as_before",
        f"{FINDER}::test_everything_is_as_before_in_the_middle_of_something",
        f"{FINDER}::test_a_callback_that_meddles_with_the_optimizer_leaves_nothing_either",
        f"{GUARANTEES}::test_buffers_that_are_assigned_and_plain_attributes_are_as_before",
        f"{GUARANTEES}::test_generators_of_data_and_transforms_are_as_before",
        f"{GUARANTEES}::test_an_optimizer_around_another_is_as_before_and_takes_the_finders_rates",
    ],
    "`lr_find` restores the same state after Ctrl-C, or an error in a callback, the model, the loss or the data": [
        f"{FINDER}::test_everything_is_as_before_when_an_event_raises",
        f"{FINDER}::test_everything_is_as_before_when_the_learners_own_parts_raise",
    ],
    "`lr_find` restores callbacks, metrics and attributes of the learner; observer callbacks do not run in it": [
        f"{GUARANTEES}::test_callbacks_are_as_before",
        f"{GUARANTEES}::test_what_callbacks_hold_is_the_same_thing_as_before",
        f"{GUARANTEES}::test_metrics_with_a_state_are_as_before",
        f"{GUARANTEES}::test_lists_of_the_learner_are_as_before",
        f"{GUARANTEES}::test_the_learners_attributes_are_as_before",
        f"{GUARANTEES}::test_callbacks_that_watch_take_no_part_in_the_finder",
    ],
    "`lr_find` followed by training is bitwise identical to training alone": [
        f"{FINDER}::test_training_after_it_is_training_without_it_bit_for_bit",
    ],
    "with gradient accumulation, `lr_find` changes the learning rate once per optimizer step": [
        f"{FINDER}::test_under_accumulation_a_point_is_a_step_of_the_optimizer",
    ],
    "the validation loss and an accumulated step are those of all samples at once, whatever the batch size": [
        "training/test_loss_weights.py::test_the_validation_loss_is_that_of_all_samples",
        "training/test_loss_weights.py::test_known_losses_do_not_depend_on_the_batch_size",
        "callbacks/test_accumulation_equals_one_batch.py::test_a_step_is_that_of_one_big_batch",
    ],
    "metrics equal a plain computation over all samples; shapes that would broadcast raise an error": [
        "metrics/test_shapes.py::test_metrics_of_a_single_output_are_those_of_its_sign",
        "metrics/test_shapes.py::test_the_classes_may_be_in_dimension_1_or_the_last",
        "metrics/test_shapes.py::test_targets_that_the_loss_ignores_do_not_count",
        "metrics/test_shapes.py::test_numbers_that_have_no_counterpart_raise_an_error",
        "metrics/test_shapes.py::test_regression_metrics_are_those_of_pairs",
        "metrics/test_shapes.py::test_losses_of_torch_are_not_broadcast_either",
        "metrics/test_shapes.py::test_scores_of_any_number_of_classes_are_those_of_the_table",
    ],
    "validating, predicting, checking and interpreting between two fits do not change the training": [
        "checkpoint/test_hidden_state.py::test_looking_does_not_change_training",
        "checkpoint/test_machine.py::test_training_after_anything_equals_training_alone",
    ],
    "runs killed by SIGKILL at random moments, also during a save, resume bit for bit (cases are kills)": [
        f"{RESUME}::test_killed_runs_equal_an_uninterrupted_run",
        f"{RESUME}::test_runs_killed_many_times_equal_an_uninterrupted_run",
    ],
    "runs stopped by an error at any batch resume bit for bit": [
        f"{RESUME}::test_a_resumed_run_equals_an_uninterrupted_run",
        f"{RESUME}::test_frozen_layers_and_non_persistent_buffers_are_saved",
        f"{GUARANTEES}::test_generators_of_data_and_transforms_resume",
    ],
    "generators inside data sets, samplers, transforms, modules and losses are restored by a resume": [
        "checkpoint/test_hidden_state.py::test_a_resumed_run_equals_one_that_was_not_interrupted",
    ],
    "a resume accepts changed caches, counters and lazily opened files; it raises for changed settings": [
        "checkpoint/test_hidden_state.py::test_caches_counters_and_open_files_do_not_make_another_run",
        "checkpoint/test_hidden_state.py::test_a_changed_setting_of_data_or_model_raises",
    ],
    "runs and models saved by version 0.1 still load": [
        "checkpoint/test_version_0_1.py::test_a_run_resumes_to_the_weights_that_version_0_1_reaches",
        "checkpoint/test_version_0_1.py::test_weights_are_loaded_with_the_optimizer",
    ],
    "resuming another run under the same name raises with the differences; a truncated file is detected": [
        f"{RESUME}::test_another_run_raises_with_the_difference",
        f"{RESUME}::test_a_run_of_other_content_in_the_same_shapes_raises",
        f"{RESUME}::test_another_random_split_raises",
        f"{RESUME}::test_a_truncated_file_is_detected_and_the_previous_one_is_used",
    ],
    "after a full disk, a killed worker or out-of-memory, the last good checkpoint stays; the error names the batch": [
        f"{RESUME}::test_a_disk_that_takes_nothing_does_not_stop_the_training",
        f"{RESUME}::test_a_folder_that_takes_nothing_from_the_beginning_is_an_error_before_any_work",
        f"{RESUME}::test_weights_that_are_not_finite_do_not_replace_a_good_checkpoint",
        f"{RESUME}::test_a_run_is_saved_before_its_first_batch",
        f"{GUARANTEES}::test_a_worker_that_dies_names_the_batch",
    ],
    "a NaN or infinite loss raises with batch, learning rate, layer and gradient; `on_nan` restores or ignores": [
        f"{GUARANTEES}::test_the_message_names_layer_gradient_and_the_last_batches",
        f"{GUARANTEES}::test_bad_data_are_named",
        f"{GUARANTEES}::test_bad_weights_are_named",
        f"{GUARANTEES}::test_on_a_device_a_lost_loss_is_seen_when_the_losses_are_read",
        f"{GUARANTEES}::test_restore_puts_the_last_good_weights_back_and_ends_the_fit",
        f"{GUARANTEES}::test_restore_does_not_trust_an_epoch_that_began_with_lost_weights",
        f"{GUARANTEES}::test_ignore_continues",
    ],
    "several processes train, validate, predict and find a learning rate as one, up to rounding": [
        "distributed/test_processes.py::test_two_processes_equal_one",
        "distributed/test_processes.py::test_three_processes_equal_one",
        "distributed/test_features.py::test_features_do_not_depend_on_the_number_of_processes",
    ],
    "runs of several processes resume bit for bit, after kills too; another number of them up to rounding": [
        "distributed/test_resuming.py::test_as_many_processes_resume_bit_for_bit",
        "distributed/test_resuming.py::test_another_number_of_processes_resumes_up_to_rounding",
        "distributed/test_resuming.py::test_runs_with_killed_processes_end_as_undisturbed_ones",
    ],
    "an error in one process, in any event or in the loader, ends all and names process and cause": [
        "distributed/test_failures.py::test_an_error_in_one_process_ends_all_and_names_process_and_cause",
    ],
    "code in a model file, checkpoint or cache never runs; file names and archives cannot leave their folder": [
        "checkpoint/test_files.py::test_code_in_a_file_is_not_run",
        f"{RESUME}::test_a_checkpoint_with_code_in_it_runs_nothing",
        "learner/test_learner.py::test_saving_outside_the_folder_raises",
        f"{RESUME}::test_a_checkpoint_is_a_name",
        "data/test_archives.py::test_links_devices_and_paths_that_lead_out_raise_and_leave_nothing",
        "data/test_archives.py::test_any_members_are_unpacked_inside_or_not_at_all",
        "data/test_download.py::test_a_member_that_leads_out_or_is_no_plain_file_raises",
    ],
    "the same seed gives bitwise identical results in one process and in two; learners do not affect each other": [
        f"{GUARANTEES}::test_the_same_seed_gives_the_same_bits_in_one_process_and_in_two",
        f"{GUARANTEES}::test_two_learners_in_turn_do_not_disturb_each_other",
        f"{GUARANTEES}::test_two_processes_on_one_folder_do_not_disturb_each_other",
    ],
    "frozen layer groups stay bitwise identical in a fit, running statistics of BatchNorm layers included": [
        "training/test_batchnorm.py::test_frozen_groups_stay_bitwise_identical_in_a_fit",
        "training/test_batchnorm.py::test_layers_frozen_by_requires_grad_keep_their_statistics",
        "vision/test_transfer.py::test_frozen_backbone_stays_bitwise_identical_and_builds_no_graph",
    ],
    "memory, open files, threads and figures stay constant over 1,000 fits and over 100,000 steps of one fit": [
        f"{GUARANTEES}::test_a_thousand_fits_leave_memory_files_and_threads_where_they_were",
        f"{GUARANTEES}::test_a_hundred_thousand_steps_take_no_more_memory_than_their_record",
    ],
    "a learner and its model are freed with the last reference, without the garbage collector": [
        "training/test_callback.py::test_a_learner_goes_with_its_last_reference",
        "data/images/test_image_bunch.py::test_data_and_learner_go_when_nobody_holds_them",
    ],
}


class CaseCounter:
    """A pytest plugin that counts the passed cases of each test function and lists the others."""

    def __init__(self) -> None:
        self.passed: Counter[str] = Counter()
        self.other: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test; a test may report a number of cases in its property ``cases``."""
        if report.when == "call" and report.passed:
            test = report.nodeid.removeprefix("tests/").partition("[")[0]
            self.passed[test] += dict(report.user_properties).get("cases", 1)
        elif not report.passed:
            self.other.append(f"{report.nodeid}: {report.outcome}")


def files_of(tests: list[str]) -> str:
    """Return the files that hold ``tests``, for a cell of the table."""
    return " ".join(f"`tests/{file}`" for file in dict.fromkeys(test.partition("::")[0] for test in tests))


def main() -> None:
    """Run the tests, and write the table if all of them pass."""
    cases = CaseCounter()
    tests = [f"{ROOT}/tests/{test}" for tests in TESTS.values() for test in tests]
    pytest.main(["-m", "", "-q", "--rootdir", str(ROOT), *tests], plugins=[cases])
    absent = [test for tests in TESTS.values() for test in tests if not cases.passed[test]]
    if cases.other or absent:
        raise SystemExit(f"Not passed: {'; '.join([*cases.other, *absent])}")
    rows = [
        f"| {guarantee} | {sum(cases.passed[test] for test in tests)} | {files_of(tests)} |"
        for guarantee, tests in TESTS.items()
    ]
    write_part("held", "\n".join(["| guarantee | tested cases, all passed | tests |", "|---|---|---|", *rows]))
    print("Wrote the table of guarantees.")
