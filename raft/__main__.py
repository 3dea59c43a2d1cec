"""``python -m raft``, which launchers such as torchrun and deepspeed use too."""

from __future__ import annotations

import sys

from raft.cli import main

if __name__ == "__main__":
    sys.exit(main())
