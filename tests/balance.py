"""Which worker of ``--dist loadfile`` runs which file, and when: the workers should end at about the same time."""

from __future__ import annotations

from typing import Any

import pytest

TOGETHER = "tests/engine/"  # its files look at what one launch for all of them has done; two workers would do it twice
LONGEST = [
    TOGETHER,
    *(f"tests/{name}.py" for name in (
        "stages/test_align", "test_kill", "stages/test_reward_modeling", "stages/test_sft", "reports/test_page_browser",
        "stages/test_align_resume", "stages/test_align_shared_base", "tools/test_evaluate_reward", "test_torchrun",
        "tools/test_plan", "rollout/test_rollout", "reports/test_curves", "rollout/test_sampler", "tools/test_compare",
        "rollout/test_backends", "tools/test_serve_reward", "stages/test_align_rewards", "tools/test_chat",
        "stages/test_sft_packing", "stages/test_align_moved",
    )),
]  # fmt: skip
"""They come first, in this order. xdist itself would begin with the files that have the most tests."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        return next((at for at, path in enumerate(LONGEST) if item.nodeid.startswith(path)), len(LONGEST))

    items.sort(key=place)  # the others stay in their order


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Balanced(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return TOGETHER if nodeid.startswith(TOGETHER) else super()._split_scope(nodeid)

    config.option.loadscopereorder = False  # the order is that of the items
    return Balanced(config, log)
