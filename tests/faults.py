"""What pgsr promises under faults, as data: docs/faults.md is written from it, and held to it by a test.

    python tests/faults.py      # writes docs/faults.md's table again

Every fault has a row for each command, or for several that promise the same. A row's tests are pytest's names
below tests/ without their parameters; `by_hand` says what was tried outside the suite, and how often.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "faults.md"
BEGIN, END = "<!-- begin: python tests/faults.py -->\n", "<!-- end -->\n"

COMMANDS = {  # as a row names it -> the command
    "train": "pgsr-train",
    "data": "pgsr-data",
    "celeba-hq": "pgsr-celeba-hq",
    "export": "pgsr-export",
    "folder": "pgsr-generate to a folder",
    "tar": "pgsr-generate to a .tar",
    "zip": "pgsr-generate to a .zip",
    "stdout": "pgsr-generate to stdout",
    "upscale": "pgsr-upscale",
    "bench": "pgsr-bench",
    "serve": "pgsr-serve",
    "ray": "pgsr-generate --ray",
}
OFFLINE = tuple(name for name in COMMANDS if name not in ("serve", "ray"))
FILES = tuple(name for name in OFFLINE if name != "stdout")
GENERATE = ("folder", "tar", "zip", "stdout")


@dataclass(frozen=True)
class Row:
    """What some commands promise under a fault."""

    commands: tuple[str, ...]
    happens: str
    kept: str
    tests: tuple[str, ...] = ()
    by_hand: str = ""


F, S, R = "test_faults.py::", "test_faults_serve.py::", "test_faults_ray.py::"
KILLS = "test_ray.py::test_a_kill_changes_nothing"  # of a worker, a node, the driver

AGAIN = "what was whole; the same command again ends with the same bytes"
NOTHING = "nothing; nothing was asked to be"

TABLE: dict[str, tuple[Row, ...]] = {}


def row(fault: str, *rows: Row) -> None:
    TABLE[fault] = rows


# ----------------------------------------------------------------------------


def without(names: tuple[str, ...], *others: str) -> tuple[str, ...]:
    return tuple(name for name in names if name not in others)


row(
    "SIGKILL",
    Row(
        ("train",),
        "ends at once",
        "the newest checkpoint; --resume ends with the same weights, log and samples",
        (f"{F}test_a_signal", f"{F}test_200_kills", "test_kill.py::test_20_kills_at_random_instants"),
        "by hand: 200 kills",
    ),
    Row(
        ("tar", "zip"),
        "ends at once",
        f"the faces so far, as .partial.NAME; {AGAIN}",
        (f"{F}test_a_signal", f"{F}test_200_kills", "test_pipeline.py::test_killed_at_random_instants"),
        "by hand: 200 kills each",
    ),
    Row(
        ("data", "folder", "stdout", "upscale"),
        "ends at once",
        f"{AGAIN}, and removes what was half written",
        (f"{F}test_a_signal", f"{F}test_200_kills"),
        "by hand: 200 kills each",
    ),
    Row(
        ("celeba-hq",),
        "ends at once, its workers too",
        f"{AGAIN}, and removes what was half written",
        (
            f"{F}test_a_signal",
            f"{F}test_200_kills",
            "test_celebahq.py::test_a_killed_process_leaves_no_workers_and_a_folder_that_goes_on",
        ),
        "by hand: 200 kills",
    ),
    Row(
        ("export", "bench"),
        "ends at once",
        f"the bundle before, what was measured; {AGAIN}, and removes what was half written",
        (
            f"{F}test_a_signal",
            f"{F}test_200_kills",
            "test_bundle_folder.py::test_a_kill_at_any_instant_leaves_a_bundle",
        ),
        "by hand: 200 kills each",
    ),
    Row(
        ("serve",),
        "answers break off",
        "the address and every file; nothing stays in the folder of temporary files",
        (f"{S}test_a_killed_server_starts_again_at_its_address", f"{S}test_200_kills"),
        "by hand: 200 kills",
    ),
    Row(
        ("ray",),
        "a worker's, a node's: another makes its shard; the driver's: the same command goes on",
        f"every shard that was whole; {AGAIN}",
        (KILLS,),
        "by hand: 201 kills",
    ),
)
row(
    "SIGTERM",
    Row(
        ("train",),
        "stops after the step at hand, exit 0",
        "a checkpoint of now",
        (f"{F}test_a_signal", "test_run.py::test_a_signal_leaves_a_checkpoint_and_the_command"),
    ),
    Row(
        without(OFFLINE, "train"),
        "ends within the picture at hand, exit 143; nothing half written",
        AGAIN,
        (f"{F}test_a_signal",),
    ),
    Row(
        ("serve",),
        "finishes what was begun, within --grace, exit 0",
        "every answer that fits",
        (
            "test_serve.py::test_sigterm_finishes_what_was_begun",
            "test_serve.py::test_the_grace_is_not_for_ever",
        ),
    ),
    Row(
        ("ray",),
        "the driver ends, exit 143",
        f"{AGAIN}, and removes what was half written",
        (f"{R}test_a_signal_to_the_driver",),
    ),
)
row(
    "Ctrl-C",
    Row(
        ("train",),
        "stops after the step at hand, exit 0",
        "a checkpoint of now",
        (f"{F}test_a_signal", "test_run.py::test_a_signal_leaves_a_checkpoint_and_the_command"),
    ),
    Row(
        without(OFFLINE, "train", "stdout"),
        "ends within the picture at hand, exit 1, a line; nothing half written",
        AGAIN,
        (f"{F}test_a_signal",),
    ),
    Row(
        ("stdout",),
        "ends, though its reader hangs, exit 1, a line",
        "what was read",
        (f"{F}test_a_signal", "test_runtime_generate.py::test_ctrl_c_while_the_reader_of_pixels_hangs"),
    ),
    Row(
        ("serve",),
        "as SIGTERM",
        "as SIGTERM",
        (f"{S}test_ctrl_c_once_finishes_what_was_begun_and_twice_does_not",),
    ),
    Row(
        ("ray",),
        "the driver ends, exit 1, a line",
        f"{AGAIN}, and removes what was half written",
        (f"{R}test_a_signal_to_the_driver",),
    ),
)
row(
    "Ctrl-C twice",
    Row(("train",), "as once", "a checkpoint of now", (f"{F}test_a_signal",)),
    Row(without(OFFLINE, "train"), "as once, exit 1", AGAIN, (f"{F}test_a_signal",)),
    Row(
        ("serve",),
        "ends at once, exit 0; answers break off",
        "every file",
        (f"{S}test_ctrl_c_once_finishes_what_was_begun_and_twice_does_not",),
    ),
    Row(("ray",), "as once", AGAIN, (f"{R}test_a_signal_to_the_driver",)),
)
row(
    "disk full",
    Row(
        ("train",),
        "a line, exit 1",
        "the newest checkpoint; once there is room, --resume ends as if nothing had been",
        (
            f"{F}test_a_full_disk",
            "test_run.py::test_a_full_disk_stops_the_run_and_the_last_checkpoint_is_whole",
        ),
    ),
    Row(
        without(OFFLINE, "train"),
        "a line, exit 1; nothing half written",
        f"once there is room: {AGAIN}",
        (f"{F}test_a_full_disk",),
    ),
    Row(
        ("serve",),
        "what needs a file is refused, the rest is served",
        "every file",
        (f"{S}test_no_room_for_temporary_files",),
    ),
    Row(
        ("ray",),
        "a full node gives its work away; where all are full, a line, exit 1",
        f"once there is room: {AGAIN}",
        ("test_ray.py::test_a_node_whose_disk_is_full_gives_its_work_away", f"{R}test_a_full_disk"),
    ),
)
row(
    "file-size limit (ulimit -f)",
    Row(
        OFFLINE,
        "a line, exit 1; nothing half written",
        f"without the limit: {AGAIN}",
        (f"{F}test_a_file_that_may_not_grow",),
    ),
    Row(
        ("serve",),
        "what needs a longer file is refused, the rest is served",
        "every file",
        (f"{S}test_no_room_for_temporary_files",),
    ),
    Row(
        ("ray",),
        "a worker that is limited says no, and others make its shards",
        "the same bytes",
        (f"{R}test_a_limit_of_a_worker",),
    ),
)
row(
    "read-only output",
    Row(
        FILES,
        "a line before the work, exit 1; nothing is written",
        "all that was there",
        (f"{F}test_a_folder_that_is_read_only",),
    ),
    Row(
        ("stdout",),
        "a closed or full stdout is a line, exit 1",
        NOTHING,
        ("test_streams.py::test_a_full_output_is_a_sentence", f"{F}test_a_full_disk"),
    ),
    Row(
        ("serve",),
        "writes nothing but temporary files: see disk full",
        "every file",
        (f"{S}test_no_room_for_temporary_files",),
    ),
    Row(
        ("ray",),
        "a line, exit 1; nothing is written",
        "all that was there",
        (f"{R}test_a_folder_that_is_read_only",),
    ),
)
row(
    "permission lost in the middle",
    Row(
        FILES,
        "ends well, or with a line, exit 1",
        f"given back: {AGAIN}",
        (
            f"{F}test_permission_that_is_lost_in_the_middle",
            "test_run.py::test_a_folder_that_is_closed_while_it_trains",
        ),
    ),
    Row(
        ("stdout", "serve"),
        "a stream that is open stays open",
        "all",
        by_hand="nothing to try: no path is opened for writing",
    ),
    Row(
        ("ray",),
        "ends well, or with a line, exit 1",
        f"given back: {AGAIN}",
        (f"{R}test_permission_that_is_lost_in_the_middle",),
    ),
)
row(
    "output removed in the middle",
    Row(
        FILES,
        "ends well, or with a line, exit 1",
        "what was written after; the same command again ends with the same bytes",
        (f"{F}test_a_folder_that_is_removed_in_the_middle",),
    ),
    Row(
        ("stdout",),
        "see: a reader that goes away",
        "what was read",
        ("test_pipeline.py::test_a_reader_that_has_enough",),
    ),
    Row(("serve",), "has none", "all", by_hand="nothing to try"),
    Row(
        ("ray",),
        "ends well, or with a line, exit 1",
        "what was written after; the same command again ends with the same bytes",
        (f"{R}test_a_folder_that_is_removed_in_the_middle",),
    ),
)
row(
    "photographs, run or bundle removed or cut in the middle",
    Row(
        ("train", "data", "export", "folder", "tar", "zip", "stdout", "upscale"),
        "ends well with what was read before, or with a line, exit 1, as where they may not be read; "
        "nothing half written",
        f"brought back: {AGAIN}",
        (
            f"{F}test_inputs_that_change_in_the_middle",
            f"{F}test_inputs_that_may_not_be_read",
            "test_contents.py::test_a_cache_that_is_cut_while_it_is_trained_on_is_a_line",
        ),
    ),
    Row(
        ("celeba-hq",),
        "a picture that is gone is skipped and named; too many are a line",
        "records and pictures so far",
        ("test_celebahq.py::test_what_cannot_be_used_is_named_up_to_a_limit",),
    ),
    Row(
        ("bench",),
        "reads photographs as train does, if at all",
        "what was measured",
        ("test_contents.py::test_a_cache_that_is_cut_while_it_is_trained_on_is_a_line",),
    ),
    Row(
        ("serve",),
        "serves on from what is open; SIGHUP opens what is there, or says that it keeps it",
        "every answer",
        (
            f"{S}test_a_bundle_that_is_removed",
            f"{S}test_bundles_are_opened_again_and_again_while_faces_are_asked_for",
        ),
    ),
    Row(
        ("ray",),
        "workers go on with what they have opened; others have it from the driver",
        "the same bytes",
        (f"{R}test_a_bundle_that_changes_in_the_middle",),
    ),
)
LIMITED_WORKER = Row(
    ("ray",),
    "a worker that is limited says no or dies, and others make its shards",
    "the same bytes",
    (f"{R}test_a_limit_of_a_worker",),
)
row(
    "address-space limit (ulimit -v)",
    Row(
        OFFLINE,
        "ends well, or with a line, exit 1",
        f"without the limit: {AGAIN}",
        (f"{F}test_little_memory",),
    ),
    Row(
        ("serve",),
        "what does not fit is refused, the rest is served",
        "every file",
        (f"{S}test_little_memory",),
    ),
    LIMITED_WORKER,
)
row(
    "handle limit (ulimit -n)",
    Row(
        OFFLINE, "ends well, or with a line, exit 1", f"without the limit: {AGAIN}", (f"{F}test_few_handles",)
    ),
    Row(
        ("serve",),
        "connections beyond it wait; when others go they are served",
        "all that is open",
        (f"{S}test_few_handles",),
    ),
    LIMITED_WORKER,
)
row(
    "unwritable cache",
    Row(
        OFFLINE,
        "a note; a temporary folder takes its place",
        "the same bytes",
        (f"{F}test_a_cache_that_cannot_be_written",),
    ),
    Row(
        ("serve",),
        "a note; a temporary folder takes its place",
        "the same bytes",
        (f"{S}test_a_cache_that_cannot_be_written",),
    ),
    Row(
        ("ray",),
        "a temporary folder takes its place, on each node",
        "the same bytes",
        (f"{R}test_a_cache_that_cannot_be_written",),
    ),
)
row(
    "two processes on one output",
    Row(
        FILES,
        "one is refused in a line, or both make the same",
        "the same bytes, whole",
        (
            f"{F}test_two_processes_on_one_output",
            "test_run.py::test_two_processes_do_not_train_in_one_folder",
            "test_pipeline.py::test_two_processes_make_the_same_set",
        ),
    ),
    Row(("stdout",), "the streams are the shell's", "all", by_hand="nothing to try"),
    Row(
        ("serve",),
        "the second is refused: the address is in use",
        "the first serves on",
        ("test_serve.py::test_an_address_that_is_taken",),
    ),
    Row(
        ("ray",),
        "both make shards of the one set",
        "the same bytes, whole",
        (f"{R}test_two_drivers_on_one_output",),
    ),
)
row(
    "a thread or process of the work that raises or dies",
    Row(
        ("train",),
        "of several ranks, all end with a line",
        "the newest checkpoint",
        ("test_parallel.py::test_a_rank_that_dies_stops_the_others_and_the_run_goes_on",),
    ),
    Row(
        GENERATE,
        "ends with its error, none waits for it",
        "pictures so far",
        (
            "test_pipeline.py::test_an_encoders_error_ends_it_all",
            "test_pipeline.py::test_an_error_ahead_comes_where_the_item_would",
        ),
    ),
    Row(
        ("celeba-hq",),
        "a line, exit 1",
        "records and pictures so far",
        ("test_celebahq.py::test_a_killed_process_leaves_no_workers_and_a_folder_that_goes_on",),
    ),
    Row(
        ("bench",),
        "a line, exit 1",
        "what was measured",
        ("test_benchmarks_training.py::test_a_process_that_breaks_is_an_error",),
    ),
    Row(("data", "export", "upscale"), "has none of its own", "all", by_hand="nothing to try"),
    Row(
        ("serve",),
        "the batch is refused, others are served",
        "all",
        ("test_serve_batcher.py::test_a_batch_that_fails_fails_alone",),
    ),
    Row(
        ("ray",),
        "its shard is made by another",
        "every shard that was whole",
        (KILLS, "test_ray.py::test_a_node_whose_disk_is_full_gives_its_work_away"),
    ),
)
row(
    "a provider that does not load",
    Row(
        (*GENERATE, "upscale", "bench", "serve"),
        "auto takes the next and says so; a named one is a line",
        "all",
        (
            "test_backends.py::test_auto_passes_over_what_does_not_open",
            "test_backends.py::test_the_library_that_a_provider_lacks_is_named",
            "test_runtime.py::test_cuda_that_does_not_start_is_an_error",
        ),
    ),
    Row(
        ("train",),
        "a line: --device cuda without a GPU",
        "all",
        ("test_training.py::test_a_device_that_is_not_there_is_one_line",),
    ),
    Row(
        ("data", "celeba-hq", "export"),
        "runs ONNX Runtime on the CPU, or nothing",
        "all",
        by_hand="nothing to try",
    ),
    Row(
        ("ray",),
        "as without Ray, said with the node; a node that would use another is refused",
        "every shard that was whole",
        (
            "test_shards.py::test_another_backend_is_refused_unless_asked_for",
            "test_shards.py::test_what_no_node_could_do_is_refused_at_once",
        ),
    ),
)
row(
    "out of memory (the kernel kills)",
    Row(OFFLINE, "as SIGKILL", "as SIGKILL", (f"{F}test_the_kernel_kills_for_want_of_memory",)),
    Row(("serve",), "as SIGKILL", "as SIGKILL", (f"{S}test_a_killed_server_starts_again_at_its_address",)),
    Row(("ray",), "as SIGKILL", "as SIGKILL", (KILLS,)),
)
row(
    "clock jumps, back and forth",
    Row(
        OFFLINE,
        "works on",
        "the same bytes; the log's seconds are of another clock",
        (f"{F}test_a_clock_that_jumps",),
    ),
    Row(
        ("serve",),
        "works on: waits and limits are of another clock",
        "all",
        (f"{S}test_a_clock_that_jumps",),
    ),
    Row(
        ("ray",),
        "works on: the driver's clock; Ray's own were not moved",
        "the same bytes",
        (f"{R}test_a_clock_that_jumps",),
    ),
)
row(
    "a slow or dead reader",
    Row(
        ("stdout",),
        "waits for a slow one; one that goes is exit 1 without a word; Ctrl-C and SIGTERM end it",
        "what was read",
        (
            "test_pipeline.py::test_a_reader_that_has_enough",
            "test_runtime_generate.py::test_pixels_arrive_whole_through_a_pipe_that_does_not_wait",
            "test_runtime_generate.py::test_ctrl_c_while_the_reader_of_pixels_hangs",
            "test_faults.py::test_sigterm_while_the_reader_hangs",
        ),
    ),
    Row(
        without(OFFLINE, "stdout"),
        "the result is made, whoever reads what is said of it",
        "all",
        ("test_streams.py::test_a_reader_that_goes_away_is_nobodys_error",),
    ),
    Row(
        ("serve",),
        "is waited for only so long; others are served",
        "all",
        (
            "test_serve_attacks.py::test_a_client_that_does_not_read_holds_nobody_up",
            "test_serve.py::test_a_long_answer_does_not_keep_others_waiting_and_ends_when_its_client_goes",
        ),
    ),
    Row(
        ("ray",),
        "the result is made, whoever reads what is said of it; a slow worker's shard is made by another, too",
        "all",
        (
            "test_streams.py::test_a_reader_that_goes_away_is_nobodys_error",
            "test_ray.py::test_a_worker_that_stands_still_is_passed",
        ),
    ),
)
row(
    "network cut",
    Row(
        ("serve",),
        "the work for who has gone ends; pgsr.client goes on behind the last face",
        "all",
        (
            f"{S}test_a_client_that_leaves_in_the_middle_of_its_upload_is_no_error",
            "test_serve.py::test_who_goes_is_not_waited_for",
            "test_client.py::test_a_set_that_is_cut_short_goes_on_behind_the_last_face",
        ),
    ),
    Row(
        ("train",),
        "of torchrun's ranks: as a rank that dies",
        "the newest checkpoint",
        ("test_parallel.py::test_a_rank_that_dies_stops_the_others_and_the_run_goes_on",),
    ),
    Row(without(OFFLINE, "train"), "uses no network", "all", by_hand="nothing to try"),
    Row(
        ("ray",),
        "a node that is out of reach has died; a store or cluster that does not answer is a line",
        "every shard that was whole",
        (
            KILLS,
            "test_ray.py::test_no_cluster_is_a_line",
            "test_shards.py::test_a_server_that_is_gone_is_a_line",
        ),
    ),
)


# ----------------------------------------------------------------------------
# The page.


def lines() -> list[str]:
    """The table in Markdown, a line a row."""
    found = ["| fault | command | what happens | what is kept | held by |", "| --- | --- | --- | --- | --- |"]
    for fault, rows in TABLE.items():
        for number, one in enumerate(rows):
            cells = [
                "" if number else f"**{fault}**",
                _named(one.commands),
                one.happens,
                one.kept,
                _held(one),
            ]
            found.append(f"| {' | '.join(cells)} |")
    return found


def _named(commands: tuple[str, ...]) -> str:
    """Names of commands; of most, those that are left out."""
    left_out = [name for name in COMMANDS if name not in commands]
    if not left_out:
        return "all"
    if len(left_out) <= 3:
        return f"all but {', '.join(left_out)}"
    return ", ".join(commands)


def _held(one: Row) -> str:
    """The tests, each by its file and name, and what was tried by hand."""
    words = [f"`{test.removesuffix('.py')}`" for test in one.tests]
    return ", ".join([*words, *([one.by_hand] if one.by_hand else [])])


def written(page: str) -> str:
    """The page with the table as it is now."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return "\n".join([before + BEGIN, *lines(), "", END + after])


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
