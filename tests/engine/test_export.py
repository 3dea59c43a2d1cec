"""What is exported loads without this project, and says the same as the module that was trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from raft.engine.export import save_pretrained
from tests.engine.cases import EXPORTED, Found, on_both
from tests.engine.scenarios import PROBE, export_directory

FULL = [case for case in EXPORTED if not case.lora]
LORA = [case for case in EXPORTED if case.lora]
TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}

# Runs where this project can not be imported.
PLAIN = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
base, results = sys.argv[1:3]
logits, dtypes = {}, {}
for directory in sys.argv[3:]:
    if "lora" in directory:
        from peft import PeftModel
        dtype = torch.bfloat16 if "bf16" in directory else torch.float32
        model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
        # The type that it was trained in; else peft computes adapters in fp32.
        model = PeftModel.from_pretrained(model, directory, autocast_adapter_dtype=False)
    else:
        model, report = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"], report
    assert len(AutoTokenizer.from_pretrained(directory)) == model.config.vocab_size
    with torch.no_grad():
        logits[directory] = model.eval()(input_ids=torch.tensor(json.loads(PROBE))).logits.float()
    dtypes[directory] = str(model.dtype)
assert not any(name.split(".")[0] in ("raft", "deepspeed") for name in sys.modules)
torch.save({"logits": logits, "dtypes": dtypes}, results)
"""


@pytest.fixture(scope="module")
def loaded(found: Found, engine_directory: Path, tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Logits and types of every exported model, loaded by transformers and peft alone."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    directories = [str(export_directory(engine_directory, p.values[1], p.values[0])) for p in on_both(EXPORTED)]
    script = PLAIN.replace("PROBE", repr(json.dumps(PROBE.tolist())))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", script, tiny_model, str(elsewhere / "results.pt"), *directories],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(elsewhere / "results.pt", weights_only=True)


@pytest.mark.parametrize(("world_size", "name"), on_both(EXPORTED))
def test_the_logits_are_those_of_the_trained_module(
    found: Found, loaded: Any, engine_directory: Path, tiny_model: str, world_size: int, name: str
) -> None:
    from transformers import AutoModelForCausalLM

    directory = str(export_directory(engine_directory, name, world_size))
    mine, theirs = found[world_size][name]["logits"], loaded["logits"][directory]
    assert loaded["dtypes"][directory] == ("torch.bfloat16" if "bf16" in name else "torch.float32")
    tolerance = 1e-5 if "fp32" in name else 1e-2
    torch.testing.assert_close(theirs, mine, rtol=0, atol=tolerance)
    with torch.no_grad():
        untrained = AutoModelForCausalLM.from_pretrained(tiny_model)(input_ids=PROBE).logits
    assert (mine - untrained).abs().max() > 5 * tolerance  # so equality says something


@pytest.mark.parametrize(("world_size", "name"), on_both(FULL))
def test_a_full_model_is_written_whole(
    found: Found, engine_directory: Path, tiny_model: str, world_size: int, name: str
) -> None:
    directory = export_directory(engine_directory, name, world_size)
    assert {path.name for path in directory.iterdir()} == TOKENIZER | {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }
    assert (directory / "README.md").read_text() == "# A card\n"
    saved, original = load_file(directory / "model.safetensors"), load_file(f"{tiny_model}/model.safetensors")
    assert {name: tuple(t.shape) for name, t in saved.items()} == {n: tuple(t.shape) for n, t in original.items()}
    dtype = torch.bfloat16 if "bf16" in name else torch.float32
    for weight, value in found[world_size][name]["weights"].items():
        assert torch.equal(saved[weight], value.to(dtype)), weight


@pytest.mark.parametrize(("world_size", "name"), on_both(LORA))
def test_an_adapter_is_written_whole(
    found: Found, engine_directory: Path, tiny_model: str, world_size: int, name: str
) -> None:
    from raft.config import ModelConfig
    from raft.models.loading import fingerprint, load_causal_lm

    directory = export_directory(engine_directory, name, world_size)
    assert {path.name for path in directory.iterdir()} == TOKENIZER | {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "raft_adapter.json",
    }
    saved = load_file(directory / "adapter_model.safetensors")
    weights = found[world_size][name]["weights"]
    assert len(saved) == len(weights) == 28  # A and B beside seven linear layers in two blocks
    for weight, value in weights.items():
        stored = saved[weight.replace(".default", "")]
        assert stored.numel() > 0
        assert stored.abs().max() > 0
        torch.testing.assert_close(stored.float(), value, rtol=2**-8 if "bf16" in name else 0, atol=0)
    settings = json.loads((directory / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == tiny_model
    assert settings["inference_mode"] is True
    record = json.loads((directory / "raft_adapter.json").read_text())
    assert record["base_model_fingerprint"] == fingerprint(load_causal_lm(ModelConfig(model_name_or_path=tiny_model)))


@pytest.mark.parametrize("world_size", [1, 2])
def test_adapters_saved_under_zero_3_are_those_of_zero_0(found: Found, engine_directory: Path, world_size: int) -> None:
    partitioned = load_file(
        export_directory(engine_directory, "exported-fp32-zero3-lora", world_size) / "adapter_model.safetensors"
    )
    plain = load_file(export_directory(engine_directory, "exported-fp32-zero0-lora", 1) / "adapter_model.safetensors")
    assert partitioned.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(partitioned[name], value, rtol=0, atol=1e-6, msg=name)


def test_generate_stops_where_responses_end(tiny_model: str, tmp_path: Path) -> None:
    """EOS, and the token that the chat template closes an answer with where it is another."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    for eos, expected in (("<|im_end|>", 2), ("<|endoftext|>", [0, 2])):
        tokenizer = AutoTokenizer.from_pretrained(tiny_model, eos_token=eos)
        save_pretrained(model, tokenizer, tmp_path / "model", card="", base_model=tiny_model)
        assert json.loads((tmp_path / "model/generation_config.json").read_text())["eos_token_id"] == expected


def test_weights_are_read_back_before_they_are_put_in_place(tmp_path: Path) -> None:
    """Cut off, with a longer header than there is, or not there: the export that was there before stays."""
    from raft.engine.export import save_pretrained

    class Model:
        """Writes what the test wants."""

        length = 10**6  # bytes of the file that stay

        def save_pretrained(self, directory: Path) -> None:
            save_file({"weight": torch.zeros(8)}, directory / "model.safetensors")
            whole = (directory / "model.safetensors").read_bytes()
            (directory / "model.safetensors").write_bytes(whole[: self.length])
            if not self.length:
                (directory / "model.safetensors").unlink()

    model, tokenizer = Model(), SimpleNamespace(save_pretrained=lambda directory: None)

    def save() -> None:
        save_pretrained(model, tokenizer, tmp_path / "final", card="", base_model="base")  # type: ignore[arg-type]

    save()
    before = (tmp_path / "final/model.safetensors").read_bytes()
    for length, told in ((-1, "weights were not written whole"), (0, "no weights were written")):
        model.length = length
        with pytest.raises(OSError, match=told):
            save()
        assert (tmp_path / "final/model.safetensors").read_bytes() == before
