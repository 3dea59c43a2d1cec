"""Configuration dataclasses <-> command-line flags and YAML files.

A command's config is a dataclass of *groups*, and a group is a dataclass whose fields are declared with
``argument(default, "One sentence of help.")``. Flags are flat (``--learning_rate``), YAML is flat or grouped.
A group's ``__post_init__`` may refuse conflicts with ``UserError``. It also runs on the group's defaults, so
it should change nothing, and what the user must give is declared ``required=True`` rather than refused there.
"""

from __future__ import annotations

import copy
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from raft.elsewhere import WHERE, ours
from raft.errors import UserError
from raft.flag import EXPECTED, Flag, closest, convert, convert_texts, nearest, shown, underscored
from raft.help_page import Entry, Section, glued, help_page
from raft.yaml_file import KeyPath, load_yaml, load_yaml_with_lines

__all__ = ["argument", "from_dict", "help_text", "load_yaml", "nearest", "parse", "to_dict", "to_yaml"]

C = TypeVar("C")

RESERVED = ("config", "help", "h", "local_rank")
DRY_RUN = ("--dry_run", "Say what the run would need and how long it would take, and start nothing: raft plan.")
METAVARS = {int: "N", float: "X", str: "TEXT"}


def argument(
    default: Any,
    help: str,
    *,
    aliases: Sequence[str] = (),
    metavar: str | None = None,
    required: bool = False,
    commas: bool = True,
    positional: bool = False,
    bare: str | None = None,
) -> Any:
    """A dataclass field that is a flag.

    ``required`` refuses None and empty values once flags and files are read. ``commas=False`` keeps the
    commas in a list's values (regular expressions, for instance); otherwise ``a,b`` is two values.
    ``positional`` takes the values in front of the first flag (``raft plot RUN``) as well as its own flag's;
    a command has at most one such field. ``bare`` is what the flag means without a value.
    """
    metadata: dict[str, Any] = {"help": help, "aliases": tuple(aliases), "metavar": metavar}
    metadata |= {"required": required, "commas": commas, "positional": positional, "bare": bare}
    if isinstance(default, list):
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


# ------------------------------------------------------------------ what a config class consists of


@dataclass(frozen=True)
class _Schema:
    groups: dict[str, Any]  # instances that hold the command's defaults
    flags: dict[str, Flag]  # by every name they answer to, aliases included
    negations: dict[str, Flag]  # switches by their --no_ name

    @property
    def positional(self) -> Flag | None:
        """The flag that values in front of all flags belong to."""
        found = {flag.name: flag for flag in self.flags.values() if flag.options["positional"]}
        assert len(found) <= 1, f"more than one positional flag: {', '.join(found)}"
        return next(iter(found.values()), None)


def _schema(config_class: type) -> _Schema:
    schema = _Schema({}, {}, {})
    for group in fields(config_class):
        instance = group.default if group.default_factory is MISSING else group.default_factory()
        where = f"{config_class.__name__}.{group.name}"
        assert is_dataclass(instance), f"{where} needs a dataclass instance as its default"
        schema.groups[group.name] = instance
        for flag in _flags_of(group.name, instance):
            negations = [f"no_{flag.name}"] if flag.is_switch else []
            names = [flag.name, *map(underscored, flag.options["aliases"])]
            for name in names + negations:
                known = [*RESERVED, *schema.flags, *schema.negations]
                assert name not in known, f"{where}: flag --{name} is taken already"
            schema.flags.update(dict.fromkeys(names, flag))
            schema.negations.update(dict.fromkeys(negations, flag))
    return schema


def _flags_of(group: str, instance: Any) -> Iterator[Flag]:
    hints = get_type_hints(type(instance))
    for item in fields(instance):
        if not item.init:
            continue
        where = f"{type(instance).__name__}.{item.name}"
        assert "help" in item.metadata, f"{where} is not declared with argument()"
        kind, optional = _without_none(hints[item.name])
        is_list = get_origin(kind) is list
        kind = get_args(kind)[0] if is_list else kind
        assert kind in EXPECTED or get_origin(kind) is Literal, f"{where}: type {kind} is not supported"
        yield Flag(item.name, group, kind, is_list, optional, getattr(instance, item.name), item.metadata)


def _without_none(hint: Any) -> tuple[Any, bool]:
    """The type without its ``| None``, and whether it had one."""
    if get_origin(hint) not in (Union, types.UnionType):
        return hint, False
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    return (kinds[0] if len(kinds) == 1 else hint), len(kinds) < len(get_args(hint))


def _build(config_class: type[C], schema: _Schema, values: Mapping[str, Any]) -> C:
    """The config with ``values`` (by field name) in place of the defaults."""
    given: dict[str, dict[str, Any]] = {group: {} for group in schema.groups}
    for name, flag in schema.flags.items():
        value = values.get(flag.name, flag.default)
        if flag.options["required"] and value in (None, "", []):
            raise UserError(f"--{flag.name} is required: {flag.options['help']}")
        if name in values:
            given[flag.group][name] = value
    return config_class(**{name: replace(group, **given[name]) for name, group in schema.groups.items()})


# ------------------------------------------------------------------ flags


def parse(config_class: type[C], argv: Sequence[str], *, prog: str) -> C:
    """The config that results from the command's defaults, then ``--config`` files in order, then flags.

    Raises ``UserError`` naming the flag, or the file, line and key. ``--help`` prints the page and exits.
    """
    if "--help" in argv or "-h" in argv:
        print(help_text(config_class, prog=prog))
        raise SystemExit(0)
    schema = _schema(config_class)
    files, texts = _read_flags(schema, argv, prog)
    values: dict[str, Any] = {}
    for path in files:
        mapping, lines = load_yaml_with_lines(path)
        values |= _read_mapping(schema, mapping, path, lines)
    values |= {name: convert_texts(schema.flags[name], found, f"--{name}") for name, found in texts.items()}
    return _build(config_class, schema, values)


def _read_flags(schema: _Schema, argv: Sequence[str], prog: str) -> tuple[list[str], dict[str, list[str]]]:
    """The ``--config`` files, and the texts given for each field. A repeated list extends, others replace."""
    files: list[str] = []
    texts: dict[str, list[str]] = {}
    for name, values in _tokens(schema, argv):
        if name == "config":
            if not values:
                raise UserError("--config: needs the path of a YAML file")
            files += values
        elif name in schema.negations:
            if values:
                raise UserError(f"--{name}: takes no value, found {shown(values[0])}")
            texts[schema.negations[name].name] = ["false"]
        elif name in schema.flags:
            flag = schema.flags[name]
            _check_number_of_values(flag, name, values)
            earlier = texts.get(flag.name, []) if flag.is_list else []
            texts[flag.name] = earlier + (values or [flag.options["bare"] or "true"])
        elif name != "local_rank":  # added by the deepspeed launcher; the environment has it too
            raise UserError(f"unknown flag --{name}. {_instead(schema, name) or f'All flags: {prog} --help'}")
    return files, texts


def _instead(schema: _Schema, name: str) -> str:
    """What to write for an unknown flag: the name that another tool's has here, else the one most like it."""
    if here := ours(name, schema.flags):
        return f"Here it is --{here}: {WHERE}"
    close = closest(name, [*schema.flags, *schema.negations, "config", "help"])
    return f"Did you mean --{close}?" if close else ""


def _tokens(schema: _Schema, argv: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Every flag, dashes as underscores, with the values that follow it or its ``=``; first the positional one."""
    rest = list(argv)
    leading: list[str] = []
    while schema.positional and rest and not rest[0].startswith("--"):
        leading.append(rest.pop(0))
    if schema.positional and leading:
        yield schema.positional.name, leading
    while rest:
        token = rest.pop(0)
        if not token.startswith("--"):
            close = closest(underscored(token.lstrip("-")), schema.flags)
            hint = f" Did you mean --{close}?" if close else ""
            raise UserError(f"unexpected {shown(token)}: values come after a flag such as --seed 1.{hint}")
        name, equals, value = token[2:].partition("=")
        values = [value] if equals else []
        while rest and not equals and not rest[0].startswith("--"):
            values.append(rest.pop(0))
        yield underscored(name), values


def _check_number_of_values(flag: Flag, name: str, values: list[str]) -> None:
    if not values and not flag.is_switch and not flag.options["bare"]:
        raise UserError(f"--{name}: needs a value, {flag.expected}")
    if len(values) > 1 and not flag.is_list:
        found = " ".join(map(shown, values))
        raise UserError(f"--{name}: takes one value, found {found} (a value with spaces needs quotes)")


# ------------------------------------------------------------------ mappings and YAML


def from_dict(config_class: type[C], mapping: Mapping[str, Any]) -> C:
    """The config from ``{group: {field: value}}`` or ``{field: value}``, with the checks of ``parse``."""
    schema = _schema(config_class)
    return _build(config_class, schema, _read_mapping(schema, mapping, "", {}))


def to_dict(config: Any) -> dict[str, dict[str, Any]]:
    """``{group: {field: value}}`` with plain values, as ``from_dict`` takes it."""
    groups = {group.name: getattr(config, group.name) for group in fields(config)}
    return {
        name: {item.name: copy.copy(getattr(group, item.name)) for item in fields(group) if item.init}
        for name, group in groups.items()
    }


def to_yaml(config: Any) -> str:
    """The whole config as YAML that ``--config`` reads back to an equal one."""
    import yaml

    mapping = to_dict(config)
    text = yaml.safe_dump(mapping, sort_keys=False, allow_unicode=True, width=110)
    if yaml.safe_load(text) != mapping:  # PyYAML folds unescaped U+0085 and U+2028 into spaces
        text = yaml.safe_dump(mapping, sort_keys=False, allow_unicode=False, width=110)
    return text


def _read_mapping(
    schema: _Schema, mapping: Mapping[Any, Any], file: str, lines: Mapping[KeyPath, int]
) -> dict[str, Any]:
    """Values by field name. ``file`` and ``lines`` are for errors."""
    values: dict[str, Any] = {}
    for path, value in _entries(schema, mapping):
        line = lines.get(path)
        prefix = file + (f", line {line}" if line else "") + (": " if file else "")
        flag = _known_flag(schema, path, prefix)
        if flag.name in values:
            raise UserError(f'{prefix}"{".".join(path)}" sets {flag.name} a second time')
        values[flag.name] = convert(flag, value, prefix + ".".join(path))
    return values


def _entries(schema: _Schema, mapping: Mapping[Any, Any]) -> Iterator[tuple[KeyPath, Any]]:
    for key, value in mapping.items():
        if key in schema.groups and isinstance(value, Mapping):
            yield from (((key, str(inner)), item) for inner, item in value.items())
        elif key not in schema.groups or key in schema.flags or value is not None:
            yield (str(key),), value


def _known_flag(schema: _Schema, path: KeyPath, prefix: str) -> Flag:
    *group, key = path
    flag = schema.flags.get(underscored(key))
    if flag is None and not group and key in schema.groups:
        raise UserError(f'{prefix}"{key}" is a group of settings, expected lines of `name: value` under it')
    if flag is None:
        same_group = [name for name, known in schema.flags.items() if not group or known.group in group]
        here = ours(underscored(key), schema.flags)
        hint = f' Here it is "{here}": {WHERE}' if here else nearest(key, same_group)
        hint = hint or nearest(key, [*schema.flags, *schema.groups])
        raise UserError(f'{prefix}unknown key "{".".join(path)}".{hint}')
    if group and flag.group not in group:
        raise UserError(f'{prefix}unknown key "{".".join(path)}". It belongs under "{flag.group}"')
    return flag


# ------------------------------------------------------------------ help


def help_text(config_class: type, *, prog: str) -> str:
    """The --help page: the class docstring, its ``examples``, every flag under its group's title, and ``also``.

    ``also`` are (flag, help) of what the command line answers to by itself.
    """
    schema = _schema(config_class)
    sections: list[Section] = []
    for name, group in schema.groups.items():
        flags = [flag for key, flag in schema.flags.items() if key == flag.name and flag.group == name]
        sections.append((_title(type(group), name), [_entry(flag) for flag in flags]))
    config = "Read settings from YAML, flat or grouped as above; later files win, and flags win over files."
    also = getattr(config_class, "also", ())
    sections.append(("Always there", [("--config FILE ...", config), *also, ("--help", "Show this page.")]))
    leading = f"{_values(schema.positional)} " if schema.positional else ""
    usage = f"{prog} {leading}[--flag value ...] [--config file.yaml ...]"
    about = config_class.__doc__ if _has_docstring(config_class) else prog
    return help_page(about or prog, usage, getattr(config_class, "examples", ()), sections)


def _entry(flag: Flag) -> Entry:
    metavar = flag.options["metavar"] or METAVARS.get(flag.kind, "")
    text = flag.options["help"]
    if flag.choices and not flag.options["metavar"]:
        metavar = "{" + ",".join(flag.choices) + "}"
        if len(metavar) > 40:
            metavar, text = "NAME", f"{text} One of {', '.join(flag.choices)}."
    left = f"--[no_]{flag.name}" if flag.is_switch else f"--{flag.name} {metavar}{' ...' * flag.is_list}"
    notes = [f"also --{alias}" for alias in flag.options["aliases"]]
    if flag.options["positional"]:
        notes.insert(0, "the flag's name may be left out in front of all other flags")
    if flag.options["required"] and flag.default in (None, "", []):
        notes.insert(0, "required")
    elif flag.default != "":
        notes.insert(0, f"default: {_plain(flag.default)}")
    return left, " ".join([text, *(glued(f"({note})") for note in notes)])


def _values(flag: Flag) -> str:
    """What stands for a positional flag's values in a usage line: RUN, or RUN ..."""
    return (flag.options["metavar"] or METAVARS.get(flag.kind, "")) + " ..." * flag.is_list


def _plain(value: Any) -> str:
    """A default as it would be typed: 2e-5 rather than 2e-05, true rather than True."""
    if isinstance(value, list):
        return ",".join(map(_plain, value)) or "none"
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return re.sub(r"e([+-])0*", r"e\1", repr(value)).replace("e+", "e")
    return str(value)


def _title(group_class: type, name: str) -> str:
    doc = (group_class.__doc__ or "").strip() if _has_docstring(group_class) else ""
    return doc.splitlines()[0].rstrip(".:") if doc else name.replace("_", " ").capitalize()


def _has_docstring(some_class: type) -> bool:
    """Whether somebody wrote it; ``dataclass`` fills a missing one with the signature."""
    return not (some_class.__doc__ or "").startswith(f"{some_class.__name__}(")
