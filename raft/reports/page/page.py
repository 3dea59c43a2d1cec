"""Runs -> report.html: one file, no network, nothing in it that the runs' texts could start.

The data travels as one block of deflated JSON in base64, whose alphabet has no character that HTML gives a meaning
to. The page's own script writes it into the document as text only, and the policy in the page's head (which names
script and style by their hashes, forbids connections and everything else, and makes the browser refuse to parse
strings as HTML) stands behind that.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import zlib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from raft.reports.page.payload import gather, laid_out, overview
from raft.reports.page.records import Records, distinct_names, read_records
from raft.run_directory import write_text

PARTS = ("format.js", "charts.js", "tables.js", "samples.js", "page.js")  # one script, in this order

MEGABYTE = 1_000_000
CHARACTERS_PER_BYTE = 3.5  # more than deflate and base64 give for what models write


def write_page(paths: Sequence[str | Path], output: Path | None = None, *, max_megabytes: float = 4.0) -> Path:
    """Read runs and write their page, whole or not at all.

    Args:
        paths: run directories; the first is the one that others are compared with.
        output: the file; None is report.html in the first run directory.
        max_megabytes: what the page may take. Sample texts are left out beyond it, and the page says how many.

    Raises:
        UserError: for a directory that holds no run, or a record in it that can not be read.
    """
    runs = [read_records(path, name) for path, name in zip(paths, distinct_names(paths), strict=True)]
    output = output or runs[0].path / "report.html"
    write_text(output, build_page(runs, max_megabytes=max_megabytes))
    return output


def build_page(runs: Sequence[Records], *, max_megabytes: float = 4.0) -> str:
    """The page as text, within ``max_megabytes`` as far as leaving out sample texts gets it there."""
    limit = max_megabytes * MEGABYTE
    fixed, texts = overview(runs), [gather(run, limit * CHARACTERS_PER_BYTE / len(runs)) for run in runs]
    share, page = 1.0, ""
    for _ in range(8):
        page = render(fixed | laid_out(texts, share))
        if len(page) <= limit or share < 1e-3:
            break
        share *= 0.95 * limit / len(page)
    return page


def render(data: Mapping[str, Any]) -> str:
    """The page around its data."""
    script = "\n".join(_part(name) for name in PARTS)
    style = _part("style.css")
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    names = ", ".join(run["name"] for run in data["runs"])
    values = {"POLICY": policy, "TITLE": html.escape(names), "STYLE": style, "SCRIPT": script, "DATA": packed(data)}
    # One pass over the template: what a value contains is never looked at again.
    pieces = _part("template.html").split("%%")
    return "".join(values[piece] if i % 2 else piece for i, piece in enumerate(pieces))


def packed(data: Mapping[str, Any]) -> str:
    """JSON, deflated without a header, in base64."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
    return base64.b64encode(deflate.compress(text.encode("ascii")) + deflate.flush()).decode("ascii")


def _part(name: str) -> str:
    return (resources.files("raft.reports.page") / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """As a content security policy names a script or a style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
