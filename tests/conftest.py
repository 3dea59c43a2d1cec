"""Tiny models that every test can afford: two layers, 32 wide, a tokenizer trained on a few sentences."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest

if os.environ.get("RAFT_TEST_GPU") != "1":  # the tests are about what every machine has; tests/test_gpu.py is not
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models gain nothing from threads, and ranks would fight over them

from tests.balance import pytest_collection_modifyitems as pytest_collection_modifyitems
from tests.balance import pytest_xdist_make_scheduler as pytest_xdist_make_scheduler
from tests.processes import ROOT as ROOT  # after the environment is set, which forked processes get too
from tests.processes import run_forked, spare_time

hypothesis.settings.register_profile("any machine", deadline=None)  # how long an example takes is no property
hypothesis.settings.load_profile("any machine")


def pytest_collection_finish() -> None:
    spare_time()


SENTENCES = [
    "Hello there, how are you today? I am fine, thank you very much.",
    "Bread needs flour, water, salt and time. Bake it until it is brown.",
    "I can not help with that, but here is something better to do instead.",
    "The quick brown fox jumps over the lazy dog and runs away from it.",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(directory: Path) -> Any:
    """A byte-level BPE tokenizer with ChatML markup; pad and EOS differ."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=384, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(SENTENCES, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(directory)
    return tokenizer


def build_model(directory: Path, *, classifier: bool = False, seed: int = 0) -> None:
    """Save a randomly initialised Llama (or its sequence classifier) and its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    tokenizer = build_tokenizer(directory)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,  # large enough that the model has opinions
        tie_word_embeddings=True,
        num_labels=1,
    )
    torch.manual_seed(seed)
    (LlamaForSequenceClassification if classifier else LlamaForCausalLM)(config).save_pretrained(directory)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Directory of a tiny causal language model with its tokenizer."""
    directory = tmp_path_factory.mktemp("models") / "tiny"
    build_model(directory)
    return str(directory)


@pytest.fixture(scope="session")
def talkative_model(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny model after a little training on short answers: it ends most responses by EOS, some at once."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = tmp_path_factory.mktemp("models") / "talkative"
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_model), AutoModelForCausalLM.from_pretrained(tiny_model)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    words = " ".join(SENTENCES).split()
    for i in range(250):
        asked = [{"role": "user", "content": " ".join(words[i % 36 : i % 36 + 2 + i % 4])}]
        prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        answer = (" ".join(words[7 * i % 36 :][:2]) if i % 12 else "") + tokenizer.eos_token
        ids, start = tokenizer(prompt + answer, return_tensors="pt").input_ids, len(tokenizer(prompt).input_ids)
        labels = torch.where(torch.arange(ids.shape[1]) < start, -100, ids)
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="session")
def tiny_reward_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Directory of a tiny sequence classifier with its tokenizer."""
    directory = tmp_path_factory.mktemp("models") / "tiny-reward"
    build_model(directory, classifier=True, seed=1)
    return str(directory)


@pytest.fixture(scope="session")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of 24 short conversations of different lengths."""
    path = tmp_path_factory.mktemp("data") / "conversations.jsonl"
    words = " ".join(SENTENCES).split()
    rows = [
        {
            "messages": [
                {"role": "user", "content": " ".join(words[i : i + 3 + i % 5])},
                {"role": "assistant", "content": " ".join(words[2 * i : 2 * i + 2 + i % 9])},
            ]
        }
        for i in range(24)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="session")
def preferences(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of 24 preference pairs: the chosen response is polite, the rejected one is not."""
    path = tmp_path_factory.mktemp("data") / "preferences.jsonl"
    words = " ".join(SENTENCES).split()
    rows = [
        {
            "prompt": " ".join(words[i : i + 3 + i % 5]),
            "chosen": "thank you very much " + " ".join(words[i : i + 1 + i % 3]),
            "rejected": "runs away from it " + " ".join(words[i : i + i % 4 + 1]),
        }
        for i in range(24)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of 12 prompts with ids."""
    path = tmp_path_factory.mktemp("data") / "prompts.jsonl"
    words = " ".join(SENTENCES).split()
    rows = [{"prompt_id": f"p{i}", "prompt": " ".join(words[3 * i : 3 * i + 2 + i % 6])} for i in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def run_raft(*arguments: object, num_processes: int = 1, timeout: float = 300, check: bool = True) -> Any:
    """Run ``raft`` in processes of its own, as a user would; gives the CompletedProcess."""
    done = run_forked(("-m", "raft"), *arguments, num_processes=num_processes, timeout=timeout)
    if check and done.returncode:
        raise AssertionError(
            f"raft {' '.join(map(str, arguments))} exited with {done.returncode}:\n{done.stderr[-4000:]}"
        )
    return done


@pytest.fixture
def raft() -> Callable[..., Any]:
    """``run_raft`` as a fixture."""
    return run_raft


def run_ranks(script: str, num_processes: int, *arguments: object, timeout: float = 300) -> str:
    """Run a Python script's text on several ranks (or one); gives rank 0's standard output."""
    done = run_forked(("-c", script), *arguments, num_processes=num_processes, timeout=timeout)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
