"""Makes the prompts of data/arithmetic: sums of two numbers, tasks ``chain_sum`` of the package reasoning-gym.

    pip install reasoning-gym==0.1.25
    python scripts/make_arithmetic_prompts.py

The same seed gives the same files. No question is in both.
"""

from __future__ import annotations

import json
from pathlib import Path

DIRECTORY = Path(__file__).parent.parent / "data" / "arithmetic"
SIZES = {"train": 384, "held_out": 128}
SEED = 0


def main() -> None:
    """Write both files."""
    import reasoning_gym

    tasks = reasoning_gym.create_dataset(
        "chain_sum", size=4 * sum(SIZES.values()), seed=SEED, min_terms=2, max_terms=2, min_digits=1, max_digits=2
    )
    answers = {task["question"]: task["answer"] for task in tasks}  # each question once
    questions = iter(answers)
    DIRECTORY.mkdir(exist_ok=True)
    for name, size in SIZES.items():
        chosen = [next(questions) for _ in range(size)]
        rows = [
            {"prompt_id": f"{name}-{i:03d}", "prompt": question, "answer": answers[question]}
            for i, question in enumerate(chosen)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (DIRECTORY / f"{name}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
