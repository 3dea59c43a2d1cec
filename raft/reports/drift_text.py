"""The drift watch on the screen. Texts of models are untrusted: what could steer a terminal is escaped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAX_ALARMS = 6  # in full on the screen; all are in drift.json


def printable(text: str) -> str:
    """A text on one line: line breaks, control characters and invisible ones as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def describe(report: Mapping[str, Any]) -> str:
    """The alarms of an iteration, new ones in full; empty where there is none."""
    new = [alarm for alarm in report["alarms"] if alarm["first_iteration"] == report["iteration"]]
    old = [alarm for alarm in report["alarms"] if alarm["first_iteration"] != report["iteration"]]
    lines = [line for alarm in new[:MAX_ALARMS] for line in _alarm(alarm)]
    if len(new) > MAX_ALARMS:
        lines.append(f"drift: {len(new) - MAX_ALARMS} more alarms, in drift.json")
    if old:
        named = ", ".join(f"{_name(alarm)} {alarm['share_now']:.0%}" for alarm in old[:MAX_ALARMS])
        lines.append(f"drift, still: {named}" + (", ..." if len(old) > MAX_ALARMS else ""))
    return "\n".join(lines)


def summary_lines(drift: Mapping[str, Any]) -> list[str]:
    """What a run's end says: which alarms there were, on one line; none where there was none."""
    if not drift["iterations"]:
        return []
    named = [f"{_name(one)} {one['share_start']:.0%} -> {one['share_now']:.0%}" for one in drift["alarms"]]
    shown = ", ".join(named[:MAX_ALARMS]) + (", ..." if len(named) > MAX_ALARMS else "")
    first, last = drift["iterations"][0], drift["iterations"][-1]
    return [f"drift alarms since iteration {first}; in {last}: {shown} of the responses"]


def _name(row: Mapping[str, Any]) -> str:
    feature = printable(row["feature"])
    return feature if row["kind"] == "shape" else f"{row['kind']} '{feature}'"


def _alarm(alarm: Mapping[str, Any]) -> list[str]:
    lines = [
        f"drift: {_name(alarm)} is in {alarm['share_now']:.1%} of the responses, {alarm['share_start']:.1%} at the "
        f"start, {alarm['selection_ratio']:.1f} times as frequent among the selected (p {alarm['p']:.1g})"
    ]
    if alarm["also"]:
        also = [f"'{printable(name)}'" for _, name in alarm["also"]]
        lines.append(f"  in the same responses: {', '.join(also[:5])}" + (", ..." if len(also) > 5 else ""))
    if alarm["examples"]:
        lines.append(f"  for example: {printable(alarm['examples'][0]['excerpt'])}")
    if rule := alarm["rule"]:
        lines.append(
            f"  against it: {printable(rule['command'])}   (discards {rule['discards_now']:.1%} of these responses, "
            f"{rule['discards_start']:.1%} of the first)"
        )
    return lines


def table(report: Mapping[str, Any]) -> str:
    """Alarms and what else has risen, a line each."""
    head = f"{'':<6}{'start':>7}{'now':>7}{'times':>7}{'at least':>9}{'selected':>9}{'prompts':>8}{'p':>8}  feature"
    lines = [head]
    for mark, rows in (("ALARM", report["alarms"]), ("", report["risen"])):
        for row in rows:
            favour = f"{row['selection_ratio']:.2f}" if row["selection_ratio"] is not None else "-"
            p = f"{row['p']:.1g}" if row["p"] is not None else "-"
            lines.append(
                f"{mark:<6}{row['share_start']:>7.1%}{row['share_now']:>7.1%}{row['ratio']:>7.2f}{row['ratio_low']:>9.2f}"
                f"{favour:>9}{row['num_prompts']:>8}{p:>8}  {_name(row)}"
            )
    return "\n".join(lines)
