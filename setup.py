"""Installation: `pip install -e .`, with `-c constraints.txt` for exactly the versions that were tested."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

# Plain literals: scripts/check_environment.py reads them from this file without running it.
# The tests were run with the lowest of all of them together (of 4.66 and the like the last), on Python 3.10.
REQUIREMENTS = [
    "torch>=2.10",
    "transformers>=5.17,<6",
    "deepspeed>=0.19.8",
    "datasets>=3.1",
    "peft>=0.21",
    "numpy>=1.26",
    "matplotlib>=3.8",
    "nltk>=3.9",
    "tensorboard>=2.16",
    "gguf>=0.10",
    "safetensors>=0.8",
    "pyyaml>=6",
    "tqdm>=4.66",
    "xxhash>=3",
    "packaging>=23",
]
EXTRAS = {
    "serve": ["starlette>=0.41", "uvicorn>=0.30"],  # raft serve-reward
    "language": ["py3langid>=0.4"],  # rule:language
    "vllm": ["vllm>=0.20"],  # raft align --rollout_backend vllm; 0.20 is the first that allows transformers 5
    "dev": [
        "pytest>=8",
        "pytest-xdist>=3.6",
        "starlette>=0.41",
        "uvicorn>=0.30",
        "py3langid>=0.4",
        "hypothesis>=6.100",
        "ruff>=0.9",
        "mypy>=1.13",
        "types-PyYAML>=6",
        "types-tqdm>=4.66",
        "selenium>=4.20",
    ],
}

if __name__ == "__main__":
    version = re.search(r'__version__ = "(.+?)"', (ROOT / "raft" / "__init__.py").read_text(encoding="utf-8"))
    readme = ROOT / "README.md"
    setup(
        name="raft-toolkit",
        version=version.group(1),
        description="Reward-ranked fine-tuning (RAFT) of language models: SFT, reward model, alignment",
        long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
        long_description_content_type="text/markdown",
        license="Apache-2.0",
        packages=find_packages(include=["raft", "raft.*"]),
        package_data={"raft": ["py.typed"], "raft.reports.page": ["*.html", "*.css", "*.js"]},
        python_requires=">=3.10",
        install_requires=REQUIREMENTS,
        extras_require=EXTRAS,
        entry_points={"console_scripts": ["raft = raft.cli:main"]},
    )
