"""The README's table of what is held: runs the tests behind each promise, and counts the cases that each tried."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.documents import write_part
from benchmarks.timing import ROOT

FINDER, LOST, RESUME = "test_lr_finder.py", "test_nothing_lost.py", "test_resume.py"
HELD: dict[str, list[str]] = {
    "after `lr_find`, weights, buffers, gradients, optimizer, generators, order of data and flags are as before": [
        f"{FINDER}::test_everything_is_as_before",
        f"{FINDER}::test_everything_is_as_before_in_the_middle_of_something",
        f"{FINDER}::test_a_callback_that_meddles_with_the_optimizer_leaves_nothing_either",
        f"{LOST}::test_buffers_that_are_assigned_and_plain_attributes_are_as_before",
        f"{LOST}::test_generators_of_data_and_transforms_are_as_before",
        f"{LOST}::test_an_optimizer_around_another_is_as_before_and_takes_the_finders_rates",
    ],
    "so too after Ctrl-C or an error in any event of a callback, in model, loss or data": [
        f"{FINDER}::test_everything_is_as_before_when_an_event_raises",
        f"{FINDER}::test_everything_is_as_before_when_the_learners_own_parts_raise",
    ],
    "and so are callbacks, metrics and the learner's attributes; those that watch take no part": [
        f"{LOST}::test_callbacks_are_as_before",
        f"{LOST}::test_what_callbacks_hold_is_the_same_thing_as_before",
        f"{LOST}::test_metrics_with_a_state_are_as_before",
        f"{LOST}::test_lists_of_the_learner_are_as_before",
        f"{LOST}::test_the_learners_attributes_are_as_before",
        f"{LOST}::test_callbacks_that_watch_take_no_part_in_the_finder",
    ],
    "`lr_find`, then training, equals training alone to the bit": [
        f"{FINDER}::test_training_after_it_is_training_without_it_bit_for_bit",
    ],
    "under gradient accumulation a point of the curve is a step of the optimizer": [
        f"{FINDER}::test_under_accumulation_a_point_is_a_step_of_the_optimizer",
    ],
    "runs killed by SIGKILL at random moments and inside a save equal runs left alone, to the bit (cases are kills)": [
        f"{RESUME}::test_killed_runs_equal_one_that_was_left_alone",
        f"{RESUME}::test_runs_killed_many_times_equal_one_that_was_left_alone",
    ],
    "runs ended by an error at a batch and taken up again equal runs left alone, to the bit": [
        f"{RESUME}::test_a_run_taken_up_again_equals_one_that_was_left_alone",
        f"{RESUME}::test_frozen_layers_and_buffers_outside_the_state_are_kept",
        f"{LOST}::test_generators_of_data_and_transforms_go_on_after_a_resume",
    ],
    "another run under the same name is refused with what differs; a file that is cut off is noticed": [
        f"{RESUME}::test_another_run_is_refused_with_what_differs",
        f"{RESUME}::test_a_run_of_other_things_in_the_same_shapes_is_refused",
        f"{RESUME}::test_a_split_that_is_drawn_anew_is_refused",
        f"{RESUME}::test_a_file_that_is_cut_off_is_noticed_and_the_one_before_is_used",
    ],
    "a full disk, a worker that dies, memory that runs out: the last good file stays, the error names the batch": [
        f"{RESUME}::test_a_disk_that_takes_nothing_does_not_stop_the_training",
        f"{RESUME}::test_a_folder_that_takes_nothing_from_the_beginning_is_an_error_before_any_work",
        f"{RESUME}::test_weights_that_are_lost_do_not_replace_a_good_file",
        f"{RESUME}::test_a_run_is_kept_before_its_first_batch",
        f"{LOST}::test_a_worker_that_dies_names_the_batch",
    ],
    "a loss that is NaN or infinite is named with batch, rate, layer and gradient; `on_nan` restores or ignores": [
        f"{LOST}::test_the_message_names_layer_gradient_and_the_last_batches",
        f"{LOST}::test_bad_data_are_named",
        f"{LOST}::test_bad_weights_are_named",
        f"{LOST}::test_on_a_device_a_lost_loss_is_seen_when_the_losses_are_read",
        f"{LOST}::test_restore_puts_the_last_good_weights_back_and_ends_the_fit",
        f"{LOST}::test_restore_does_not_trust_an_epoch_that_began_with_lost_weights",
        f"{LOST}::test_ignore_goes_on",
    ],
    "code in a model file, a checkpoint or a cache is not run; names and archives cannot leave their folder": [
        "test_files.py::test_code_in_a_file_is_not_run",
        f"{RESUME}::test_a_checkpoint_with_code_in_it_runs_nothing",
        "test_learner.py::test_nothing_is_saved_outside_the_folder",
        f"{RESUME}::test_a_checkpoint_is_a_name",
        "test_urls.py::test_a_member_that_leads_out_is_named",
    ],
    "the same seed gives the same bits, twice in one process and in two; two learners, two processes do not meet": [
        f"{LOST}::test_the_same_seed_gives_the_same_bits_in_one_process_and_in_two",
        f"{LOST}::test_two_learners_in_turn_do_not_disturb_each_other",
        f"{LOST}::test_two_processes_on_one_folder_do_not_disturb_each_other",
    ],
    "memory, open files, threads and figures are flat over 1,000 fits and over 100,000 steps in one": [
        f"{LOST}::test_a_thousand_fits_leave_memory_files_and_threads_where_they_were",
        f"{LOST}::test_a_hundred_thousand_steps_take_no_more_memory_than_their_record",
    ],
    "a learner and its model go with the last reference, without the garbage collector": [
        "test_callback.py::test_a_learner_goes_with_its_last_reference",
        "test_image_bunch.py::test_data_and_learner_go_when_nobody_holds_them",
    ],
}


class Cases:
    """A plugin of pytest's that counts what passed of each test function, and what did not."""

    def __init__(self) -> None:
        self.passed: Counter[str] = Counter()
        self.other: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test that ran; it may say itself how many cases it tried."""
        if report.when == "call" and report.passed:
            test = report.nodeid.removeprefix("tests/").partition("[")[0]
            self.passed[test] += dict(report.user_properties).get("cases", 1)
        elif not report.passed:
            self.other.append(f"{report.nodeid}: {report.outcome}")


def main() -> None:
    """Run the tests, and write the table if all of them passed."""
    cases = Cases()
    tests = [f"{ROOT}/tests/{test}" for tests in HELD.values() for test in tests]
    pytest.main(["-m", "", "-q", "--rootdir", str(ROOT), *tests], plugins=[cases])
    absent = [test for tests in HELD.values() for test in tests if not cases.passed[test]]
    if cases.other or absent:
        raise SystemExit(f"Not held: {'; '.join([*cases.other, *absent])}")
    rows = [f"| {what} | {sum(cases.passed[test] for test in tests)} |" for what, tests in HELD.items()]
    write_part("held", "\n".join(["| what is held | cases tried, all passed |", "|---|---|", *rows]))
    print("Wrote the table of what is held.")
