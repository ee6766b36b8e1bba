"""The faults that runs are to survive, and the test of each; `test_catalogue.py` checks that they exist."""

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class Entry:
    """A fault.

    Args:
        fault: What happens.
        tests: Tests that have it happen, ``file::function`` below ``tests/``; those marked slow among them.
        reason: Why there is none, or what they leave out.
    """

    fault: str
    tests: tuple[str, ...]
    reason: str = ""


def _of(file: str, *functions: str) -> tuple[str, ...]:
    return tuple(f"faults/test_{file}.py::test_{function}" for function in functions)


_DIES = _of("ray", "01_to_08_a_worker_dies")
_SHARD = _of("corruption", "32_to_36_a_shard_is_damaged")
_FOLD = _of("corruption", "32_to_36_a_fold_is_damaged_and_its_units_are_gone")
_CHANGED = _of("input", "50_51_what_the_run_rests_on_changed")
_SWEEP = _of("sweep", "a_run_killed_or_refused_at_some_of_its_operations_goes_on_to_the_same_bits", "every_operation")
_PROMPT = _of("ray", "46_47_a_prompt_ends_or_hangs_its_worker", "46_47_a_prompt_ends_or_hangs_whoever_steps")

CATALOGUE: dict[int, Entry] = {
    1: Entry("a worker dies before any write", _of("processes", "01_killed_before_any_write_of_a_unit") + _DIES),
    2: Entry("a worker dies between two files", _of("processes", "02_killed_between_two_files_of_a_unit") + _DIES),
    3: Entry("a worker dies within a file", _of("processes", "03_killed_within_a_file_of_a_unit") + _DIES),
    4: Entry(
        "a worker dies before the receipt",
        _of("processes", "04_killed_after_the_files_and_before_the_receipt") + _DIES,
    ),
    5: Entry(
        "a worker dies before its answer", _of("processes", "05_killed_after_the_receipt_and_before_the_answer") + _DIES
    ),
    6: Entry("a worker exits, or touches memory that is not there", _of("processes", "06_ends_by_itself") + _DIES),
    7: Entry("every worker dies while it starts", _of("ray", "07_every_worker_dies_while_it_starts")),
    8: Entry("a reducer dies", _of("processes", "08_reducer_killed_while_it_folds") + _DIES),
    9: Entry(
        "the driver dies",
        _of("processes", "09_driver_killed_at_random_times_again_and_again")
        + _of("ray", "09_the_driver_is_killed_and_started_again_at_once")
        + _SWEEP,
    ),
    10: Entry("Ctrl-C, SIGTERM", _of("processes", "10_told_to_stop", "10_told_to_stop_twice")),
    11: Entry("the raylet dies", _of("ray", "11_12_a_process_of_ray_is_killed")),
    12: Entry("the GCS dies", _of("ray", "11_12_a_process_of_ray_is_killed")),
    13: Entry("a node is lost", (), "one machine has one node; a raylet that dies (11) takes all its workers with it"),
    14: Entry(
        "the power is lost",
        _of(
            "power",
            "14_power_is_lost_at_any_moment",
            "14_runs_go_on_after_some_losses_of_power",
            "14_runs_go_on_after_every_loss_of_power",
        ),
    ),
    15: Entry("a worker is stopped", _of("ray", "15_a_worker_is_stopped")),
    16: Entry(
        "a stopped worker wakes",
        _of("hangs", "16_a_worker_wakes_after_its_unit_was_done_by_another")
        + _of("ray", "16_a_stopped_worker_wakes_after_its_unit_was_done"),
    ),
    17: Entry("a stopped driver wakes", _of("hangs", "17_a_driver_wakes_after_another_took_its_run")),
    18: Entry("a slow disk, a straggler", _of("hangs", "18_a_slow_disk") + _of("ray", "18_a_straggler_is_raced")),
    19: Entry("the wall clock jumps", _of("hangs", "19_the_wall_clock_jumps")),
    20: Entry("Ray kills a worker for want of memory", _of("ray", "20_a_worker_is_killed_for_want_of_memory")),
    21: Entry(
        "torch finds no memory",
        _of("hangs", "21_torch_finds_no_memory", "21_torch_finds_no_memory_even_for_one_prompt"),
    ),
    22: Entry("the kernel kills a worker for want of memory", (), "a SIGKILL as in 1; a limit needs a cgroup"),
    23: Entry("the disk is full", _of("storage", "23_the_disk_is_full") + _SWEEP),
    24: Entry("a file grows too large", _of("storage", "24_a_file_grows_too_large")),
    25: Entry("flushing fails", _of("storage", "25_flushing_fails", "25_flushing_a_folder_fails")),
    26: Entry("reading fails", _of("storage", "26_reading_fails")),
    27: Entry("giving a name fails", _of("storage", "27_giving_a_name_fails")),
    28: Entry("a write is torn", _of("storage", "28_a_write_is_torn") + _SWEEP),
    29: Entry("the disk is read-only", _of("storage", "29_the_disk_is_read_only")),
    30: Entry("stale temporary files", _of("storage", "30_stale_temporary_files")),
    31: Entry("no more files", _of("storage", "31_no_more_files")),
    32: Entry("a flipped byte in a shard's data", _SHARD + _FOLD),
    33: Entry("a flipped byte in a shard's index", _SHARD),
    34: Entry("a shard is missing", _SHARD + _FOLD),
    35: Entry("a shard of length 0", _SHARD),
    36: Entry("a shard is cut, appended to, zeroed", _SHARD + _FOLD),
    37: Entry("an array's metadata lies", _of("corruption", "37_the_metadata_of_an_array_lies")),
    38: Entry("two shards change places", _of("corruption", "38_two_shards_change_places")),
    39: Entry(
        "a receipt is damaged, or another's",
        _of("corruption", "39_a_receipt_is_damaged", "39_a_receipt_comes_from_another_run"),
    ),
    40: Entry("a steer's tensors are damaged", _of("corruption", "40_a_steers_tensors_are_damaged")),
    41: Entry("`CURRENT`, plan, card are damaged", _of("corruption", "41_current_plan_or_card_are_damaged")),
    42: Entry("two drivers at once", _of("concurrency", "42_two_drivers_at_once")),
    43: Entry("a stale lease is taken over", _of("concurrency", "43_many_take_over_from_one_that_died")),
    44: Entry(
        "a unit is done twice",
        _of("concurrency", "44_a_unit_is_done_twice_with_other_bits")
        + _of("hangs", "16_a_worker_wakes_after_its_unit_was_done_by_another"),
    ),
    45: Entry("a reader while a run publishes", _of("concurrency", "45_a_reader_sees_the_old_or_the_new_steer")),
    46: Entry("a prompt ends its worker", _PROMPT),
    47: Entry("a prompt hangs its worker", _PROMPT),
    48: Entry(
        "activations are not finite; a prompt is empty",
        _of("input", "48_activations_that_are_not_finite_and_a_prompt_without_tokens"),
    ),
    49: Entry(
        "more is lost than allowed",
        _of("input", "49_too_many_prompts_are_lost") + _of("ray", "49_too_many_prompts_end_their_workers"),
    ),
    50: Entry("weights, tokenizer, spec, threads change", _CHANGED),
    51: Entry("input files change", _CHANGED),
    52: Entry("a link leads out", _of("input", "52_a_link_leads_out_of_the_run")),
    53: Entry("a huge header", _of("input", "53_a_header_of_a_terabyte")),
    54: Entry("a pickle", _of("input", "54_a_pickle_for_weights")),
    55: Entry("YAML", _of("input", "55_yaml_that_is_more_than_a_spec")),
    56: Entry("markup and control signs", _of("input", "56_prompts_that_would_be_markup_or_control")),
    57: Entry("the driver is cut off", (), "needs a second network; Ray ends the driver as when the GCS dies (12)"),
}
