"""Errors that are the user's to fix, told in one sentence without a traceback."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in flags, configuration or data.

    The message names the file, line, field or flag, what was found and what is allowed.
    ``raft.cli`` prints it and exits with code 2; anything else that is raised is a bug and keeps its traceback.
    """
