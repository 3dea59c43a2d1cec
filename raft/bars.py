"""Progress bars: tqdm's, by a clock that nobody sets.

tqdm asks for the time of day. When that is set back, a bar would count negative seconds, and stand still until the old
time has come again.
"""

from __future__ import annotations

import time
from typing import Any

from tqdm.auto import tqdm as _tqdm


class tqdm(_tqdm):
    """See tqdm."""

    @property
    def _time(self) -> Any:
        return time.monotonic

    @_time.setter
    def _time(self, clock: Any) -> None:
        """Not the one that tqdm would have."""
