"""What ``--reward`` is given: a name, a kind of source, and its options.

    [NAME=]PATH_OR_HUB_NAME[,label=positive][,base=MODEL][,contract=FILE]   a classifier or a LoRA adapter
    [NAME=]package.module:function   a Python function; also path/to/file.py:function
    [NAME=]http://host:port   a remote scorer
    [NAME=]rule:repetition[,n=3][,max=0.2]   a ready rule
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal
from urllib.parse import urlsplit

from raft.errors import UserError

TOKEN_VARIABLE = "RAFT_REWARD_TOKEN"
"""Environment variable with what a remote scorer and its client show each other."""

Kind = Literal["model", "function", "remote", "rule"]
MODEL_OPTIONS = ("label", "template", "function_to_apply", "base", "contract")
# Keys of samples.jsonl and of the metrics beside "reward/NAME_mean", which a source would hide.
TAKEN_NAMES = ("all", "selected", "random", "oracle", "log_ratio", "reward")

_NAMED = re.compile(r"(\w[\w.-]*)=(.+)", re.DOTALL)
_FUNCTION = re.compile(r"(?:[A-Za-z_][\w.]*|[^:,]+\.py):[A-Za-z_]\w*")
_MODEL_OPTION = re.compile(rf",({'|'.join(MODEL_OPTIONS)})=([^,]+)$")


@dataclass(frozen=True)
class Spec:
    """One source as the user named it.

    Attributes:
        name: under which its scores are written down; unique in a run.
        kind: what it is.
        target: the path, function, address or rule.
        options: what follows the target, by name.
        flag: how to name it in an error, such as ``--reward rule:length``.
    """

    name: str
    kind: Kind
    target: str
    options: dict[str, str] = field(default_factory=dict)
    flag: str = "--reward"


def parse_specs(texts: Sequence[str]) -> list[Spec]:
    """Every source with a name of its own: as given, else after its target, with a number where that is taken.

    Raises:
        UserError: if one can not be read, or two are given the same name.
    """
    specs: list[Spec] = []
    for text in texts:
        spec, is_named = _parse(text)
        if is_named and spec.name in [other.name for other in specs]:
            raise UserError(f"--reward {text}: the name {spec.name} is taken by another source.")
        specs.append(replace(spec, name=_unique(spec.name, [other.name for other in specs])))
    return specs


def _unique(name: str, taken: Sequence[str]) -> str:
    number = 2
    found = name
    while found in taken:
        found, number = f"{name}_{number}", number + 1
    return found


def _parse(text: str) -> tuple[Spec, bool]:
    if re.match(r"(\w[\w.-]*=)?https?://[^/]*@", text):
        # Flags are written into the run directory.
        raise UserError("--reward http://...: put a password into the environment variable RAFT_REWARD_TOKEN instead.")
    named = _NAMED.fullmatch(text)
    name, rest = (named.group(1), named.group(2)) if named else ("", text)
    flag = f"--reward {text}"
    if name in TAKEN_NAMES:
        raise UserError(f"{flag}: the name {name} means something else in the records; choose another.")
    if rest.startswith(("http://", "https://")):
        spec = _remote(rest, flag)
    elif rest.startswith("rule:"):
        target, _, options = rest.removeprefix("rule:").partition(",")
        spec = Spec(target, "rule", target, rule_options(options, flag), flag)
    elif _FUNCTION.fullmatch(rest):
        function = rest.rpartition(":")[2]
        spec = Spec(function if function not in TAKEN_NAMES else f"{function}_function", "function", rest, flag=flag)
    else:
        spec = _model(rest, flag)
    return (replace(spec, name=name) if name else spec), bool(name)


def _remote(target: str, flag: str) -> Spec:
    try:
        parts = urlsplit(target)
        host, _ = parts.hostname, parts.port  # a port that is no number is noticed here
        (host or "").encode("idna")  # as a socket does, whose error would name no flag
    except ValueError as error:
        raise UserError(f"{flag}: {error}.") from error
    if not host or parts.query or parts.fragment or not re.fullmatch(r"[!-~]+", target):
        raise UserError(f"{flag}: expected http://HOST:PORT in ASCII without spaces, with or without a path.")
    return Spec("remote", "remote", target.rstrip("/"), flag=flag)


def _model(target: str, flag: str) -> Spec:
    options: dict[str, str] = {}
    while found := _MODEL_OPTION.search(target):
        options[found.group(1)] = found.group(2)
        target = target[: found.start()]
    parts = [part for part in re.split(r"[/\\]", target) if part not in ("", ".", "..", "final", "best")]
    if not parts:
        raise UserError(f"{flag}: found no path, hub name, package.module:function, http:// address or rule:NAME.")
    name = re.sub(r"[^\w.-]", "_", parts[-1])
    return Spec(name if name not in TAKEN_NAMES else f"{name}_model", "model", target, options, flag)


def meant_by(target: str) -> str | None:
    """What was probably meant by a target that is neither a directory nor a hub name, for the message."""
    if re.fullmatch(r"[\w.-]+:\d+(/.*)?", target):
        return f"if a remote scorer is meant, give http://{target}"
    if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", target):
        return f"if a Python function is meant, give {':'.join(target.rsplit('.', 1))}"
    if unknown := [key for key in re.findall(r",(\w+)=", target) if key not in MODEL_OPTIONS]:
        return f"{unknown[0]} is no option of a model, those are {', '.join(MODEL_OPTIONS)}"
    return None


def rule_options(text: str, flag: str) -> dict[str, str]:
    """``n=3,max=0.2`` as a mapping. What ``pattern=`` or ``characters=`` is given runs to the end, commas included."""
    options: dict[str, str] = {}
    while text:
        key, equals, rest = text.partition("=")
        if not equals or not re.fullmatch(r"\w+", key):
            raise UserError(f"{flag}: found {text!r} among the options, expected key=value.")
        value, _, text = (rest, "", "") if key in ("pattern", "characters") else rest.partition(",")
        options[key] = value
    return options
