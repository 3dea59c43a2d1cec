"""``--dataset_path`` -> rows of the kinds a stage takes, and how many were left out and why."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from raft.data.files import SUFFIXES, iter_values
from raft.data.formats import parse_row
from raft.data.pairs import SKIPPED_EMPTY_ANSWER
from raft.data.rows import Row
from raft.errors import UserError

SKIPPED_NO_RESPONSE = "prompt without a response"
CUT_UNANSWERED = "end of a conversation without an answer"

_KIND_NAMES = {
    "text": "a plain text",
    "conversation": "a conversation that ends with a response",
    "preference": "a preference pair (chosen and rejected)",
    "prompt": "a prompt without a response",
}
_TAKEN_BY = {
    "text": "raft sft trains on plain texts",
    "conversation": "raft sft trains on conversations",
    "preference": "raft reward trains on preference pairs",
    "prompt": "raft align takes prompts",
}
_ALLOWED = ", ".join(SUFFIXES)
_HUB_NAME = re.compile(r"(?P<owner>[\w.-]+)/[\w.-]+(:[\w.-]+)?")
# Words in the names of files and directories that say which split they hold, as `datasets` reads them.
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
HELD_OUT = ("validation", "test")  # splits to evaluate on while training, the first that is there
TEST = ("test", "validation")  # to evaluate what was trained
# Not data, but lies beside it in directories that `datasets` wrote.
_NOT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}


@dataclass(frozen=True)
class Dataset:
    """What ``load_rows`` read."""

    rows: list[Row]
    files: list[str]  # what was read
    skipped: dict[str, int]  # reason -> number of rows left out, or of their ends


def load_rows(
    dataset_path: str,
    *,
    kinds: Collection[str],
    flag: str = "--dataset_path",
    max_rows: int | None = None,
    splits: Sequence[str] = ("train",),
) -> Dataset:
    """Read a file, a directory, several joined by commas, or a hub data set (``owner/name[:config]``).

    ``kinds`` are the kinds of ``Row`` the caller takes. Where "prompt" is among them, a row of another kind
    becomes one. Where a response is needed, prompts without one are left out and counted, and so is what stands
    behind the last answer of a conversation; conversations with an empty answer are left out too. Any other kind is
    a ``UserError``, as are a path that is not there, a bad row and a data set without a usable row. ``max_rows``
    stops reading early. Of hub data sets, and of directories whose files are named after splits, the first of
    ``splits`` is read that is there; of a directory without any of them, all files.
    """
    if max_rows is not None and max_rows < 1:
        raise UserError(f"{flag}: found a limit of {max_rows} rows, expected at least 1")
    rows: list[Row] = []
    files: list[str] = []
    skipped: Counter[str] = Counter()
    for path in _resolve(dataset_path, flag, splits):
        if len(rows) == max_rows:
            break
        files.append(path)
        for row in _rows_of(path, flag, splits, skipped):
            wanted = _as_kind(row, kinds, skipped)
            if wanted is None:
                continue
            rows.append(wanted)
            if len(rows) == max_rows:
                break
    if not rows:
        _fail_empty(dataset_path, kinds, flag, skipped)
    return Dataset(rows, files, dict(skipped))


def split_rows(rows: list[Row], validation_split_percentage: float) -> tuple[list[Row], list[Row]]:
    """(train, validation): the last percents are held out, rounded up, so at least one row if asked for."""
    flag = "--validation_split_percentage"
    if not 0 <= validation_split_percentage < 100:
        raise UserError(f"{flag}: found {validation_split_percentage}, expected at least 0 and less than 100")
    # Exact: in floats 1.1 % of 1,000 rows is a little over 11, and would round up to 12.
    num_validation = math.ceil(Fraction(str(validation_split_percentage)) * len(rows) / 100)
    num_train = len(rows) - num_validation
    if rows and num_train == 0:
        raise UserError(
            f"{flag}: {validation_split_percentage} holds out all {len(rows)} rows and leaves nothing to "
            "train on, expected a smaller percentage or more rows"
        )
    return rows[:num_train], rows[num_train:]


def _rows_of(path: str, flag: str, splits: Sequence[str], skipped: Counter[str]) -> Iterator[Row]:
    values = iter_values(path) if os.path.exists(path) else _hub_values(path, flag, splits)
    for source, raw in values:
        yield from parse_row(raw, source, skipped)


def _as_kind(row: Row, kinds: Collection[str], skipped: Counter[str]) -> Row | None:
    """``row`` if its kind is wanted, its prompt if prompts are, None (and counted) if there is no response to want."""
    kind = row.kind
    if kind in kinds:
        if kind == "conversation" and "prompt" not in kinds and row.has_empty_answer:
            skipped[SKIPPED_EMPTY_ANSWER] += 1
            return None
        return row
    if "prompt" in kinds:
        return row.as_prompt()
    if kind == "prompt" and "conversation" in kinds and (answered := row.as_conversation()):
        found = _as_kind(answered, kinds, skipped)
        if found is not None:
            skipped[CUT_UNANSWERED] += 1
        return found
    if kind == "prompt" and "preference" not in kinds:
        skipped[SKIPPED_NO_RESPONSE] += 1
        return None
    raise UserError(f"{row.source}: found {_KIND_NAMES[kind]}, expected {_wanted(kinds)} ({_TAKEN_BY[kind]})")


def _wanted(kinds: Collection[str]) -> str:
    return " or ".join(name for kind, name in _KIND_NAMES.items() if kind in kinds)


def listed(counts: Mapping[str, int]) -> str:
    """Counts by reason for the screen, the largest first: ``5 x reply is empty, 1 x prompt without a response``."""
    return ", ".join(f"{count} x {reason}" for reason, count in sorted(counts.items(), key=lambda one: -one[1]))


def _fail_empty(dataset_path: str, kinds: Collection[str], flag: str, skipped: Counter[str]) -> None:
    reasons = listed(skipped)
    found = f"only rows to leave out ({reasons})" if reasons else "no rows"
    hint = f"; {_TAKEN_BY['prompt']}" if skipped[SKIPPED_NO_RESPONSE] else ""
    raise UserError(f"{flag} {dataset_path}: found {found}, expected {_wanted(kinds)}{hint}")


def _resolve(dataset_path: str, flag: str, splits: Sequence[str]) -> list[str]:
    """The files and hub names that a path stands for, in reading order."""
    is_one = os.path.exists(dataset_path)  # a file's name may hold a comma
    names = [dataset_path] if is_one else [part.strip() for part in dataset_path.split(",")]
    if not all(names):
        raise UserError(f'{flag}: found an empty path in "{dataset_path}", expected files or hub data sets')
    return [path for name in names for path in _resolve_one(name, flag, splits)]


def _resolve_one(name: str, flag: str, splits: Sequence[str]) -> list[str]:
    if os.path.isdir(name):
        return _of_split(_files_under(name, flag), name, splits)
    if os.path.exists(name):
        if not name.lower().endswith(SUFFIXES):
            expected = f"expected a file that ends with one of {_ALLOWED}"
            raise UserError(f"{flag}: found {name}, {expected}{_conversion(name)}")
        return [name]
    match = _HUB_NAME.fullmatch(name)
    # "data/prmopts" beside an existing data/ is a slip of the pen, not a question for the hub.
    if match and not name.lower().endswith(SUFFIXES) and not os.path.isdir(match["owner"]):
        return [name]
    raise UserError(
        f"{flag}: {name} does not exist{_nearest_neighbour(name)}, expected a file "
        f"({_ALLOWED}), a directory of them or a hub data set (owner/name)"
    )


def _nearest_neighbour(path: str) -> str:
    directory, name = os.path.split(path.rstrip(os.sep))
    try:
        near = difflib.get_close_matches(name, os.listdir(directory or os.curdir), n=1)
    except OSError:
        return f" (there is no directory {directory})"
    return f" (did you mean {os.path.join(directory, near[0])}?)" if near else ""


def _files_under(directory: str, flag: str) -> list[str]:
    found = []
    for folder, subfolders, names in os.walk(directory):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        found += [os.path.join(folder, name) for name in names if _is_data(name)]
    if not found:
        raise UserError(
            f"{flag}: found no data file in {directory}, expected at least one of {_ALLOWED}{_conversion(directory)}"
        )
    return sorted(found)


def _of_split(files: list[str], directory: str, splits: Sequence[str]) -> list[str]:
    """The files of one split, if a directory has files of it and of others: what is held out is not trained on."""
    named = {path: _split_of(os.path.relpath(path, directory)) for path in files}
    split = next((split for split in splits if split in named.values()), None)
    others = Counter(other for other in named.values() if other not in (split, None))
    if split is None or not others:
        return files
    if os.environ.get("RANK", "0") == "0":
        left = ", ".join(f"{other} ({count} file{'s' * (count > 1)})" for other, count in sorted(others.items()))
        print(f"{directory}: reads its split {split} and leaves out {left}; name files or directories to read others")
    also = None if split == "train" else split  # files that name no split are trained on
    return [path for path in files if named[path] in (split, also)]


def _split_of(path: str) -> str | None:
    """The split that a path names, in a file or directory; None for none, or several."""
    words = set(re.split(r"[-._ 0-9/\\]+", path.lower()))
    found = [split for split, names in _SPLITS.items() if words.intersection(names)]
    return found[0] if len(found) == 1 else None


def _conversion(path: str) -> str:
    """How ``datasets`` makes JSON lines of what lies there, where it is something that it reads."""
    target = f"{os.path.splitext(path.rstrip(os.sep))[0]}.jsonl"
    if os.path.exists(os.path.join(path, "dataset_dict.json")):
        load = f"load_from_disk({path!r})['train']"
    elif os.path.exists(os.path.join(path, "state.json")):
        load = f"load_from_disk({path!r})"
    elif path.lower().endswith((".csv", ".tsv")):
        separator = ", sep='\\t'" if path.lower().endswith(".tsv") else ""
        load = f"Dataset.from_csv({path!r}{separator})"
    elif path.lower().endswith(".arrow"):
        load = f"Dataset.from_file({path!r})"
    else:
        return ""
    what = load.partition("(")[0].partition(".")[0]
    return f"; make one: python -c \"from datasets import {what}; {load}.to_json({target!r})\""


def _is_data(name: str) -> bool:
    lower = name.lower()
    ignored = lower.startswith((".", "readme")) or lower in _NOT_DATA
    return lower.endswith(SUFFIXES) and not ignored


def _hub_values(name: str, flag: str, splits: Sequence[str]) -> Iterator[tuple[str, object]]:
    try:
        from datasets import get_dataset_split_names, load_dataset
    except ImportError as error:
        raise UserError(f"{flag}: {name} is no local path, and the hub needs `pip install datasets`") from error
    repository, _, config = name.partition(":")
    try:
        split = splits[0]
        if len(splits) > 1:
            there = get_dataset_split_names(repository, config or None)
            split = next((one for one in splits if one in there), "train")
        dataset = load_dataset(repository, config or None, split=split)
    except Exception as error:  # network, hub, cache and parsing errors share no base class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"{flag}: {name} is no local path, and could not be loaded from the hub ({reason}); "
            "expected a file, a directory, or a hub data set that can be reached from here"
        ) from error
    for i, row in enumerate(dataset):
        yield f"{name}[{i}]", row
