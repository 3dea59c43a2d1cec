"""Read one YAML mapping safely and remember the line of every key, so that an error can point at it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raft.errors import UserError

if TYPE_CHECKING:
    import yaml

KeyPath = tuple[str, ...]

_MERGE = "tag:yaml.org,2002:merge"
LARGEST = 1 << 18
"""Bytes. PyYAML is slow, and this is fifty times what the settings of a command take."""


def load_yaml(path: str | Path) -> dict[Any, Any]:
    """The mapping in a YAML file, plain Python values only; an empty file is an empty mapping.

    Raises ``UserError`` for a file that cannot be read, that is not a mapping, that repeats a key, or that
    has a tag which would build anything but plain values.
    """
    return load_yaml_with_lines(path)[0]


def load_yaml_with_lines(path: str | Path) -> tuple[dict[Any, Any], dict[KeyPath, int]]:
    """As ``load_yaml``, and the line (from 1) of every key by its path, such as ``("training", "seed")``."""
    import yaml

    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise UserError(f"{path}: found more than {LARGEST:,} bytes, expected a file of settings")
        loader = yaml.SafeLoader(data.decode("utf-8-sig"))
        root = loader.get_single_node()
        if root is None:
            return {}, {}
        if not isinstance(root, yaml.MappingNode):
            kind = "list" if isinstance(root, yaml.SequenceNode) else "single value"
            raise UserError(f"{path}: expected `key: value` lines at the top level, found a {kind}")
        lines = dict(_key_lines(root, str(path), (), set()))
        return _construct(loader, root, path), lines
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UnicodeEncodeError:
        raise UserError(f"--config: found {str(path)!r}, which can not be the name of a file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except yaml.YAMLError as error:
        raise UserError(_describe(error, str(path))) from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply for a configuration") from None
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: {error}") from None


def _construct(loader: yaml.SafeLoader, root: yaml.Node, path: str | Path) -> dict[Any, Any]:
    try:
        found = loader.construct_document(root)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # A value that only looks like a date, such as 2024-13-45, or has a tag that it does not fit: !!timestamp x.
        said = error if isinstance(error, ValueError) else "a value does not fit its tag (!!...), leave the tag out"
        raise UserError(f"{path}: {said}") from None
    if not isinstance(found, dict):  # such as a !!set
        raise UserError(f"{path}: expected `key: value` lines at the top level, found a {type(found).__name__}")
    return found


def _key_lines(node: yaml.Node, file: str, path: KeyPath, seen: set[int]) -> Iterator[tuple[KeyPath, int]]:
    """Every key's path and line, refusing repeated keys, which YAML loaders otherwise let overwrite."""
    import yaml

    if id(node) in seen:  # an alias; it may even point at its own parent
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _key_lines(item, file, (*path, "[]"), seen)
    if not isinstance(node, yaml.MappingNode):
        return
    first_lines: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.tag == _MERGE:
            _refuse_merged_merges(value, f"{file}, line {line}")
        elif isinstance(key, yaml.ScalarNode):
            if key.value in first_lines:
                raise UserError(
                    f'{file}, line {line}: key "{key.value}" is already set on line {first_lines[key.value]}'
                )
            first_lines[key.value] = line
            yield (*path, key.value), line
            yield from _key_lines(value, file, (*path, key.value), seen)


def _refuse_merged_merges(node: yaml.Node, where: str) -> None:
    """Each level of them multiplies what is merged: a few lines become more than any memory holds."""
    import yaml

    for one in node.value if isinstance(node, yaml.SequenceNode) else [node]:
        if isinstance(one, yaml.MappingNode) and any(key.tag == _MERGE for key, _ in one.value):
            raise UserError(f"{where}: merges a mapping (<<) that merges another, expected plain `key: value` lines")


def _describe(error: yaml.YAMLError, file: str) -> str:
    """One line for PyYAML's several; the tag error is the one where the reason would not be understood."""
    import yaml

    mark = getattr(error, "problem_mark", None)
    if isinstance(error, yaml.reader.ReaderError):
        return f"{file}: the character {_shown(error.character)} is not allowed (character {error.position + 1})"
    where = file if mark is None else f"{file}, line {mark.line + 1}"
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    if problem.startswith("could not determine a constructor for the tag"):
        return f"{where}: tags such as {problem.split()[-1]} are not allowed, only plain values"
    return f"{where}: not valid YAML ({problem})"


def _shown(character: int | str) -> str:
    code = character if isinstance(character, int) else ord(character)
    return f"U+{code:04X}"
