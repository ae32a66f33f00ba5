"""What stands between each fault of the matrix and a user, and a proof that its test needs it.

    python tests/guards.py [ROW ...]

copies the project to a temporary folder, runs the named tests there, and then each once more with its guard taken out:
a test that still passes shows nothing. Rows are numbers of the fault matrix; all of them take about half an hour.
tests/test_guards.py keeps the tables in step with the code; that of a run's own faults is guards_of_runs.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from guard import Guard
from guards_of_runs import RUNS

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("dho_plugin", "trainers", "configs", "tests", "scripts", "train.py", "setup.py", "pyproject.toml")
ROWS = (*range(1, 34), *range(35, 42), 44, 45)
SECONDS = 300  # for one test, which takes a few


# fmt: off
DATA = (
    # A malicious checkpoint
    Guard(9, "checkpoints load as plain tensors", "dho_plugin/sealed.py",
          "map_location=map_location, weights_only=True)", "map_location=map_location, weights_only=False)",
          "tests/host/contract/test_host_checkpoints.py::test_code_in_a_checkpoint_is_not_run"),
    Guard(9, "the refusal is an error for people", "dho_plugin/sealed.py",
          "raise UnsafeCheckpoint(_refusal(", "raise pickle.UnpicklingError(_refusal(",
          "tests/test_faults.py::test_a_runs_checkpoint_that_runs_code_is_refused_wherever_it_enters"),
    Guard(9, "a student's weights load as plain tensors", "dho_plugin/backbones.py",
          'torch.load(path, map_location="cpu", weights_only=True)',
          'torch.load(path, map_location="cpu", weights_only=False)',
          "tests/test_faults.py::test_a_students_weights_that_run_code_are_refused"),
    Guard(9, "a CLIP's weights load as plain tensors", "dho_plugin/vlm.py",
          'torch.load(path, map_location="cpu", weights_only=True)',
          'torch.load(path, map_location="cpu", weights_only=False)',
          "tests/test_vlm.py::test_a_pickle_is_refused_and_not_run"),
    Guard(9, "a run's record is read safely", "dho_plugin/saved.py", "record = yaml.safe_load(",
          "record = yaml.unsafe_load(", "tests/test_faults.py::test_a_record_that_runs_code_is_refused"),
    # A malicious split cache
    Guard(10, "the unpickler looks at each name", "dho_plugin/datasets/split_cache.py",
          "def find_class(self, module: str, name: str)", "def unused(self, module: str, name: str)",
          "tests/test_split_cache.py::test_a_pickle_that_runs_something_is_refused"),
    Guard(10, "the same for ImageNet's cached listing", "dho_plugin/datasets/split_cache.py",
          "def find_class(self, module: str, name: str)", "def unused(self, module: str, name: str)",
          "tests/test_faults.py::test_imagenets_cached_listing_that_runs_code_is_refused"),
    Guard(10, "a class of its own stands for Datum", "dho_plugin/datasets/split_cache.py", "return Stored",
          "return Datum", "tests/test_split_cache.py::test_what_is_let_in_cannot_be_changed"),
    # A split cached for another root
    Guard(11, "cached paths are found below the new root", "dho_plugin/datasets/split_cache.py",
          """return path.replace("\\\\", "/").rpartition(f"/{folder}/")[2]""", "return path",
          "tests/test_split_cache.py::test_a_dataset_that_has_moved"),
    Guard(11, "cached images that are not there are named", "dho_plugin/datasets/split_cache.py",
          "strangers.append(path)", "pass", "tests/test_split_cache.py::test_images_that_are_not_in_the_split"),
    Guard(11, "a host's split of another folder is refused", "dho_plugin/pool.py", "if strangers:", "if False:",
          "tests/test_datasets.py::test_a_split_of_another_folder_is_refused"),
    # Two processes
    Guard(12, "a split is written beside its place", "dho_plugin/sealed.py",
          'temporary = path.with_name(f"{path.name}.{_HOST}-{os.getpid()}.tmp")', "temporary = path",
          "tests/test_split_record.py::test_two_processes_that_write_one_split_leave_a_whole_file"),
    Guard(12, "a download holds its folder", "dho_plugin/data/fetch.py",
          "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass", "tests/test_fetch.py::test_two_at_once"),
    # A read-only dataset
    Guard(13, "the split goes to the output folder", "dho_plugin/manifest.py", "write_split(folder, dataset, root)",
          "write_split(Path(root), dataset, root)",
          "tests/test_own_layouts.py::test_a_run_writes_nothing_among_its_images"),
    # Listings in any order
    Guard(14, "class folders are sorted", "dho_plugin/datasets/imagenet.py",
          'return sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))',
          'return [entry for entry in path.iterdir() if not entry.name.startswith(".")]',
          "tests/test_faults.py::test_the_order_of_listings_changes_no_split"),
    Guard(14, "a class's images are sorted", "dho_plugin/datasets/imagenet.py", "for name in sorted(files)]",
          "for name in files]", "tests/test_faults.py::test_the_order_of_listings_changes_no_split"),
    # Images that cannot be read
    Guard(15, "stop is the default", "dho_plugin/loaders.py", "if not self.allowed or len(self.paths) == 1:",
          "if len(self.paths) == 1:", "tests/test_bad_images.py::test_the_default_stops_at_the_first_file"),
    Guard(15, "skip is capped", "dho_plugin/loaders.py", "if len(skipped) > self.allowed:", "if False:",
          "tests/test_bad_images.py::test_more_than_one_file_in_a_thousand_stop_the_run"),
    Guard(15, "skipped files are counted", "dho_plugin/loaders.py", "self.unreadable.add(index)", "pass",
          "tests/test_bad_images.py::test_skipped_images_are_counted_across_workers_and_steps_stay_what_they_are"),
    Guard(15, "the doctor decodes", "dho_plugin/views.py", "            if decode:", "            if False:",
          "tests/test_doctor.py::test_unreadable_images"),
    Guard(15, "skip lets no test image be", "dho_plugin/datasets/own_checks.py",
          'not (skip and entry.split == "train")]', "not skip]",
          "tests/test_folder.py::test_skipping_lets_training_images_be_and_no_others"),
    Guard(16, "whatever Pillow raises names the file", "dho_plugin/views.py",
          "        return read(path)\n    except Exception as error:",
          "        return read(path)\n    except ZeroDivisionError as error:",
          "tests/test_bad_images.py::test_what_cannot_be_read_is_named_everywhere"),
    Guard(16, "a worker's error reads like the main process's", "dho_plugin/views.py",
          '''super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].rstrip())''',
          "super().__init__(message)", "tests/test_bad_images.py::test_the_default_stops_at_the_first_file"),
    Guard(16, "a folder among the images is named", "dho_plugin/datasets/imagenet.py", "if strange:", "if False:",
          "tests/test_datasets.py::test_what_is_no_file_in_a_class_folder_is_named"),
    # Odd images
    Guard(17, "every mode becomes RGB", "dho_plugin/predicting.py", 'return image.convert("RGB")',
          "return image.copy()",
          "tests/test_bad_images.py::test_odd_images_are_the_same_in_training_evaluation_teacher_and_export"),
    Guard(17, "16 bits are scaled, not cut", "dho_plugin/predicting.py", 'if image.mode.startswith("I"):', "if False:",
          "tests/test_bad_images.py::test_odd_images_are_the_same_in_training_evaluation_teacher_and_export"),
    Guard(18, "a bomb is known by its header", "dho_plugin/predicting.py", "if short * long > MAX_PIXELS:", "if False:",
          "tests/test_bad_images.py::test_a_bomb_is_refused_before_it_is_decoded"),
    Guard(18, "1 x N is refused", "dho_plugin/predicting.py", "if long > MAX_ASPECT * short:", "if False:",
          "tests/test_bad_images.py::test_what_cannot_be_read_is_named_everywhere[thread]"),
    # Sets at their edges
    Guard(21, "a class without labelled images is refused", "dho_plugin/classes.py",
          "if without:  # names", "if False:  # names",
          "tests/test_edge_sets.py::test_a_class_without_a_labelled_image_shifts_no_other"),
    Guard(21, "the same of any host's dataset", "dho_plugin/classes.py", "    _check_labels(dataset)\n", "",
          "tests/test_own_layouts.py::test_a_label_that_no_training_image_has"),
    Guard(21, "a list that leaves out a class", "dho_plugin/labels.py", "if without:", "if False:",
          "tests/test_labels.py::test_a_list_that_does_not_fit_is_refused"),
    Guard(22, "K above a class's images stops", "dho_plugin/pool.py", 'if few != "clip":', "if False:",
          "tests/test_own_layouts.py::test_a_class_of_fewer_images_than_shots"),
    Guard(22, "it stops every trainer", "trainers/base.py",
          "check_shots(dataset.train_x, cfg.DATASET.NUM_SHOTS, dataset.lab2cname, few=cfg.DATASET.FEW)", "pass",
          "tests/test_trainers.py::test_too_many_shots_and_an_empty_pool_are_said_at_once"),
    Guard(23, "an empty pool stops", "dho_plugin/pool.py", "elif not rest:", "elif False:",
          "tests/test_edge_sets.py::test_no_unlabelled_image_is_an_error"),
    Guard(23, "a small set comes round", "dho_plugin/views.py", "pass_, offset = divmod(position, self.size)",
          "pass_, offset = 0, min(position, self.size - 1)",
          "tests/test_edge_sets.py::test_sets_smaller_than_a_batch_fill_it"),
    Guard(23, "an epoch has a step", "trainers/data.py", "return max(1, counts.get(", "return max(0, counts.get(",
          "tests/test_folder.py::test_six_labelled_and_ten_unlabelled_images_make_whole_batches"),
    Guard(23, "no batch of one is normalised", "trainers/student.py",
          "if alone and normalised and not isinstance(self.student, VLM):", "if False:",
          "tests/test_faults.py::test_a_batch_of_one_image_is_not_normalised"),
    Guard(23, "an empty set has no order", "dho_plugin/views.py", "if size < 1:", "if False:",
          "tests/test_views.py::test_empty_order_is_an_error"),
    # Test images among those that are learned from
    Guard(24, "links are followed", "dho_plugin/leaks.py", "return os.path.realpath(path) if name in links else",
          "return path if name in links else",
          "tests/test_leaks.py::test_links_are_found_by_path_and_copies_by_content"),
    Guard(24, "copies are found by content", "dho_plugin/leaks.py",
          "content = sum(map(len, sets.values())) <= MAX_COMPARED", "content = False",
          "tests/test_leaks.py::test_test_images_in_the_pool_stop_the_run_before_a_teacher_is_loaded"),
    Guard(24, "the pool is compared with the test set", "dho_plugin/pool.py",
          "if not cfg.TRAINER.DHO.TRANSDUCTIVE:", "if False:",
          "tests/test_leaks.py::test_test_images_in_the_pool_stop_the_run_before_a_teacher_is_loaded"),
    Guard(24, "so are the labelled images", "dho_plugin/pool.py",
          'check_apart(labeled, test, "labelled", "remove them from the training images", copies)', "pass",
          "tests/test_leaks.py::test_labelled_test_images_stop_every_trainer"),
    Guard(24, "a benchmark's own copies leave the pool", "dho_plugin/pool.py",
          "rest = [path for path in rest if path not in copies] if copies else rest", "pass",
          "tests/test_leaks.py::test_a_benchmarks_own_duplicates_are_let_pass_when_asked_for_and_are_not_distilled_on"),
    Guard(24, "a transductive result says so", "dho_plugin/manifest.py",
          '''["oracle"] * oracle + ["transductive"] * transductive''', '''["oracle"] * oracle''',
          "tests/test_leaks.py::test_a_transductive_run_says_so_in_every_result"),
    Guard(24, "sets of one's own are compared", "dho_plugin/datasets/own_checks.py", "if twice:", "if False:",
          "tests/test_folder.py::test_an_image_in_two_sets_is_refused_by_content"),
    # Choices on test images
    Guard(25, "no search on the test split", "dho_plugin/interpolation.py",
          'if split == "test" and not allow_oracle:', "if False:",
          "tests/test_interpolation.py::test_search_on_test_is_refused_unless_named_oracle"),
    Guard(25, "a test set called validation is seen", "dho_plugin/pool.py",
          "    if _shared(dataset.val, dataset.test, copies):", "    if False:",
          "tests/test_teachers.py::test_a_search_on_test_images_is_refused_before_training"),
    Guard(25, "no epoch is chosen on it either", "dho_plugin/pool.py",
          'if final_model == "best_val" and _shared(dataset.val, dataset.test, copies):', "if False:",
          "tests/test_trainers.py::test_no_training_and_no_choice_of_epoch_on_test_images"),
    Guard(25, "nor anything on labelled images", "dho_plugin/pool.py",
          "learned = _shared(dataset.train_x, dataset.val, copies)", "learned = []",
          "tests/test_leaks.py::test_nothing_is_chosen_on_labelled_images"),
    Guard(25, "attached trainers do not search", "trainers/attached.py",
          'if cfg.TRAINER.DHO.CHOOSE != "fixed":', "if False:",
          "tests/test_faults.py::test_an_attached_trainer_does_not_search"),
    # Labels of unlabelled images
    Guard(26, "the pool keeps neither labels nor their order", "dho_plugin/pool.py",
          "for item in (full.train_u or full.train_x)]",
          "for item in sorted(full.train_u or full.train_x, key=lambda item: item.label)]",
          "tests/test_faults.py::test_labels_that_a_loss_must_not_see_change_nothing"),
    Guard(26, "steps without labels get -1", "trainers/dho.py", "return paths, [-1] * len(paths)",
          "return paths, [0] * len(paths)", "tests/test_manifest.py::test_a_run_as_teacher_and_a_senior"),
    # Classes of one name, classes in another order
    Guard(27, "a class is found by its id", "dho_plugin/classes.py",
          "position = {id_: row for row, id_ in enumerate(self.ids)}",
          "position = {id_: self.names.index(name) for id_, name in zip(*self, strict=True)}",
          "tests/test_trainers.py::test_a_class_that_cannot_be_mapped_stops_the_run_before_training"),
    Guard(27, "shared names are said", "trainers/data.py", "_say_shared_names(class_list(dataset))", "pass",
          "tests/test_own_layouts.py::test_two_folders_of_one_name_stay_two_classes_and_are_named_once"),
    Guard(28, "a teacher's rows are the student's classes", "trainers/evaluated.py",
          "self.test_rows = trained_on.rows(self.test_classes)", "self.test_rows = None",
          "tests/test_faults.py::test_a_teacher_with_its_classes_in_another_order_teaches_the_same"),
    Guard(28, "rows of another order do not load", "dho_plugin/classes.py",
          "if self.class_bound and ClassList.decode(state) != self.classes:", "if False:",
          "tests/test_faults.py::test_a_run_does_not_go_on_from_classes_in_another_order"),
    Guard(28, "equal names in another order are not one list", "dho_plugin/classes.py",
          "if wanted.names == self.names and not set(wanted.ids) <= set(self.ids):", "if wanted.names == self.names:",
          "tests/test_edge_sets.py::test_classes_in_another_order_are_found_by_their_ids"),
    Guard(28, "a recorded split's labels are compared", "dho_plugin/split_record.py",
          "if item is not None and (item.label, item.classname) == (row.label, row.name):", "if item is not None:",
          "tests/test_split_record.py::test_classes_in_another_order_are_found_by_the_first_row"),
    Guard(28, "the prompts' hash knows the order", "dho_plugin/manifest.py",
          "json.dumps([list(templates), list(names)])", "json.dumps([list(templates), sorted(names)])",
          "tests/test_manifest.py::test_other_prompts_or_another_order_of_classes_are_another_hash"),
    # Shifted test sets
    Guard(29, "both heads lose the other classes", "dho_plugin/heads.py",
          "DualHeadLogits(self.ce[:, classes], self.kd[:, classes])",
          "DualHeadLogits(self.ce[:, classes], self.kd.log_softmax(dim=-1)[:, : len(classes)])",
          "tests/test_faults.py::test_golden_numbers_of_five_of_ten_classes"),
    Guard(29, "a trainer does it before the softmax", "trainers/dho.py", "logits.kd.float()).restrict(self.test_rows)",
          "logits.kd.float())",
          "tests/test_trainers.py::test_a_subset_of_classes_is_chosen_by_wordnet_id_before_the_softmax"),
    Guard(29, "an attached one picks rows by id", "trainers/attached.py",
          "self.kd_rows, self.kd_ce_only = trained_on.rows(self.kd_classes), False",
          "self.kd_rows, self.kd_ce_only = torch.arange(len(self.kd_classes.ids)), False",
          "tests/test_attach.py::test_other_test_sets_pick_the_kd_heads_rows_by_wordnet_id"),
    Guard(30, "V2's folders are numbers", "dho_plugin/datasets/imagenet.py",
          "folders.sort(key=lambda entry: int(entry.name))", "pass",
          "tests/test_datasets.py::test_numbered_folders_are_in_numeric_order"),
    # Lists of class names
    Guard(31, "a byte order mark is no name", "dho_plugin/datasets/lists.py", "utf-8-sig", "utf-8",
          "tests/test_datasets.py::test_classnames_with_bom_crlf_blank_lines_and_umlauts"),
    Guard(31, "a line without a name is numbered", "dho_plugin/datasets/imagenet.py", "if not name:", "if False:",
          "tests/test_datasets.py::test_classnames_with_bom_crlf_blank_lines_and_umlauts"),
    Guard(31, "a folder without a name is refused", "dho_plugin/datasets/imagenet.py", "if unknown:", "if False:",
          "tests/test_datasets.py::test_class_folders_without_a_name_and_differing_train_and_test"),
    Guard(31, "another encoding is named by its line", "dho_plugin/datasets/lists.py",
          "except UnicodeDecodeError as error:", "except ZeroDivisionError as error:",
          "tests/test_own_layouts.py::test_classes_txt_is_parsed_or_its_line_is_named"),
    Guard(32, "a long prompt is refused", "dho_plugin/towers.py",
          "+ 2 > self.context_length:", "+ 2 > 10**9:", "tests/test_vlm.py::test_long_prompts_are_refused_not_cut"),
    Guard(32, "also by tokenizers that cut", "dho_plugin/towers.py", "if row[-1] != short[-1]:", "if False:",
          "tests/test_faults.py::test_prompts_are_not_cut_by_a_tokenizer_that_would"),
    # Archives
    Guard(39, "no '..'", "dho_plugin/data/unpack.py", 'if ".." in path.parts:', "if False:",
          "tests/test_unpack.py::test_a_name_that_leads_out_of_a_zip"),
    Guard(39, "no absolute names", "dho_plugin/data/unpack.py", '''(slashed[1:2] == ":" and slashed[0].isalpha()):''',
          "False:", "tests/test_unpack.py::test_a_name_that_leads_out_of_a_zip"),
    Guard(39, "no links or devices from a tar", "dho_plugin/data/unpack.py",
          "if not (member.isreg() or member.isdir() or member.islnk()):", "if False:",
          "tests/test_unpack.py::test_a_symbolic_link_of_a_tar"),
    Guard(39, "nor from a zip", "dho_plugin/data/unpack.py",
          "if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):", "if False:",
          "tests/test_unpack.py::test_links_and_devices_of_a_zip"),
    Guard(39, "hard links to earlier files alone", "dho_plugin/data/unpack.py",
          "PurePosixPath(target) not in self.links:", "False:",
          "tests/test_unpack.py::test_a_hard_link_to_no_earlier_file"),
    Guard(39, "bombs by ratio and size", "dho_plugin/data/unpack.py",
          "if self.total > self.limit or", "if", "tests/test_unpack.py::test_a_bomb"),
    Guard(39, "bombs by number", "dho_plugin/data/unpack.py", "or self.members > MOST_MEMBERS:", "or False:",
          "tests/test_unpack.py::test_too_many_members"),
    # Downloads
    Guard(40, "size and checksum", "dho_plugin/data/download.py",
          'if source.bytes not in (None, size) or expected not in ("", digest.hexdigest()):', "if False:",
          "tests/test_fetch.py::test_a_wrong_checksum"),
    Guard(40, "a page is no data", "dho_plugin/data/download.py", "if HTML.match(start):", "if False:",
          "tests/test_fetch.py::test_an_html_page_instead[application/octet-stream]"),
    Guard(40, "a cut stream is known", "dho_plugin/data/download.py", "if got < (source.bytes or total or 0):",
          "if False:", "tests/test_fetch.py::test_a_cut_stream_and_the_next_attempt"),
    Guard(40, "no network is said with the address", "dho_plugin/data/download.py",
          "except (OSError, http.client.HTTPException) as error:", "except ZeroDivisionError as error:",
          "tests/test_fetch.py::test_drive_gives_something_else"),
    Guard(40, "steps to do by hand", "dho_plugin/data/fetch.py", "_print_steps(name, source, root, sys.stderr)", "pass",
          "tests/test_fetch.py::test_one_fails_and_the_other_goes_on[404]"),
    # Names in logs
    Guard(44, "control characters are escaped", "dho_plugin/predicting.py", 'odd = ("Cc", "Cs", "Zl", "Zp")',
          "odd = ()", "tests/test_manifest.py::test_a_class_folder_cannot_pass_for_a_result"),
    Guard(44, "in the names of classes", "dho_plugin/embedded/evaluation.py", "({printable(self._lab2cname[label])})",
          "({self._lab2cname[label]})", "tests/test_manifest.py::test_a_class_name_cannot_pass_for_a_result"),
    Guard(44, "in those that Dassl's evaluator gets", "trainers/attached.py",
          "{label: printable(name) for label, name in", "{label: name for label, name in",
          "tests/test_faults.py::test_a_class_of_an_attached_trainer_cannot_pass_for_a_result"),
    Guard(44, "in the names of files", "dho_plugin/loaders.py", "cannot be read: {printable(self.paths[index])}",
          "cannot be read: {self.paths[index]}",
          "tests/test_faults.py::test_a_file_that_is_passed_over_cannot_pass_for_a_result"),
    Guard(44, "in the folder of a model", "dho_plugin/saved.py", 'print(printable(f"Loading', 'print(str(f"Loading',
          "tests/test_faults.py::test_a_model_folder_cannot_pass_for_a_result"),
    Guard(44, "settings with them are refused", "dho_plugin/cli.py", "    _check_values(cfg)\n", "",
          "tests/test_manifest.py::test_a_setting_cannot_pass_for_a_result"),
    Guard(44, "the doctor's lines too", "dho_plugin/data/doctor.py", 'print(printable(f"    {line}"), flush=True)',
          'print(f"    {line}", flush=True)', "tests/test_doctor.py::test_names_with_control_characters_make_no_lines"),
    # Configuration files
    Guard(45, "yaml is read safely", "dho_plugin/config.py", "yaml.safe_load(", "yaml.unsafe_load(",
          "tests/test_faults.py::test_what_a_configuration_file_may_not_say"),
    Guard(45, "what yaml may not be", "dho_plugin/config.py",
          "except (yaml.YAMLError, ValueError, RecursionError) as error:", "except yaml.YAMLError as error:",
          "tests/test_faults.py::test_what_a_configuration_file_may_not_say"),
    Guard(45, "no number beyond 32 bits", "dho_plugin/cli.py", "if isinstance(word, int) and abs(word) >= 2**32:",
          "if False:", "tests/test_faults.py::test_a_number_that_nothing_can_hold"),
    Guard(45, "unknown keys are refused", "dho_plugin/config.py", "_check_key(cfg, key, where=str(path))", "pass",
          "tests/test_faults.py::test_what_a_configuration_file_may_not_say"),
    Guard(45, "with the nearest known one", "dho_plugin/errors.py", 'return f" Did you mean {by_lower[near[0]]!r}?"',
          'return f""', "tests/test_faults.py::test_what_a_configuration_file_may_not_say"),
)
# fmt: on
GUARDS = tuple(sorted((*DATA, *RUNS), key=lambda guard: guard.row))


def copy_project(target: Path) -> None:
    """Copy what the tests need, without compiled files: a restored source may be as long and as old as the changed."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, target / name)


def pytest(folder: Path, tests: Sequence[str], *options: str) -> tuple[int, str]:
    """pytest's exit status, 1 for failed tests, and what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "DHO_HOST": "embedded"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, *tests]
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS * len(tests)
        )
    except subprocess.TimeoutExpired:
        return -1, ""
    return done.returncode, done.stdout


def failing(folder: Path, tests: Sequence[str]) -> set[str]:
    """Those of the tests that do not pass as things are."""
    status, _ = pytest(folder, tests, "-x")
    return {test for test in tests if pytest(folder, [test], "-x")[0]} if status else set()


def without(guard: Guard, folder: Path) -> str:
    """What its test does when the guard is taken out of the copy in `folder`; the copy is restored."""
    file = folder / guard.file
    whole = file.read_text(encoding="utf-8")
    if whole.count(guard.text) != 1:
        return "GUARD NOT FOUND"
    file.write_text(whole.replace(guard.text, guard.instead), encoding="utf-8")
    try:
        status, _ = pytest(folder, [guard.test], "-x")
    finally:
        file.write_text(whole, encoding="utf-8")
    return {0: "STILL PASSES", 1: "fails without it"}.get(status, f"DID NOT RUN ({status})")


def main(rows: Sequence[str]) -> int:
    """Check the guards of these rows, or all; 1 if any is not needed by its test."""
    guards = [guard for guard in GUARDS if not rows or str(guard.row) in rows]
    found = []
    with tempfile.TemporaryDirectory(prefix="guards-") as temporary:
        folder = Path(temporary)
        copy_project(folder)
        tests = sorted({guard.test for guard in guards})
        print(f"{len(guards)} guards; first their {len(tests)} tests as they are", file=sys.stderr, flush=True)
        broken = failing(folder, tests)
        for number, guard in enumerate(guards, start=1):
            verdict = "FAILS ANYWAY" if guard.test in broken else without(guard, folder)
            found.append(verdict)
            print(f"[{number}/{len(guards)}] {guard.row} {guard.what}: {verdict}", file=sys.stderr, flush=True)
    print("| row | guard | test | |\n|---:|---|---|---|")
    for guard, verdict in zip(guards, found, strict=True):
        print(f"| {guard.row} | {guard.what} | {guard.test.removeprefix('tests/')} | {verdict} |")
    good = found.count("fails without it")
    print(f"\n{good} of {len(found)} tests fail without their guard")
    return int(good < len(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
