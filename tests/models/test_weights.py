"""Weights that are not whole, or no mere numbers, are refused before anything opens them."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from raft.config import ModelConfig
from raft.errors import UserError
from raft.models.loading import load_causal_lm, load_config
from raft.models.lora import load_adapter, num_labels, recorded_fingerprint
from raft.models.weights import INDEX, refuse_damaged, shapes

SOUND = save({"a": torch.zeros(2, 3), "b.score.weight": torch.zeros(5, 1)})  # 24 + 20 bytes of tensors


def with_header(header: object, tensors: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + tensors


def entry(begin: object, end: object, shape: object = (1,)) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


def test_shapes_come_from_the_header(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(SOUND)
    assert shapes(tmp_path / "x.safetensors") == {"a": [2, 3], "b.score.weight": [5, 1]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cut short (0 bytes)"),
        (SOUND[:-1], "has 43 bytes of tensors, its header speaks of 44; was it copied as a whole?"),
        (SOUND[:40], "cut short (40 bytes)"),
        (SOUND + b"x", "has 45 bytes of tensors, its header speaks of 44; there is more behind"),
        (struct.pack("<Q", 1 << 62) + b"{}", "no sound safetensors file"),
        (struct.pack("<Q", (1 << 64) - 1) + b"{}", "no sound safetensors file"),
        (with_header(b"not json"), "its header: not JSON"),
        (with_header(b"[" * 5000), "its header: not JSON"),
        (with_header([]), "its header: found list"),
        (with_header({"a": entry(0, 1 << 40)}), "its header speaks of 1099511627776"),
        (with_header({"a": entry(-4, 0)}), "not one for the tensor 'a'"),
        (with_header({"a": entry(4, 0)}, b"1234"), "not one for the tensor 'a'"),
        (with_header({"a": entry(0, "4")}, b"1234"), "not one for the tensor 'a'"),
        (with_header({"a": entry(0, 4, [-1])}, b"1234"), "not one for the tensor 'a'"),
        (with_header({"a": 5}), "not one for the tensor 'a'"),
    ],
)
def test_files_that_are_not_sound(tmp_path: Path, data: bytes, message: str) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(data)
    with pytest.raises(UserError) as caught:
        shapes(file, flag="--flag")
    assert str(caught.value).startswith(f"--flag: {file}")
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["adapter_model.bin", "model.bin", "pytorch_model.bin"])
def test_pickled_weights_are_refused_and_never_opened(tmp_path: Path, name: str) -> None:
    witness = tmp_path / "opened"

    class Bomb:
        def __reduce__(self) -> object:
            return Path.touch, (witness,)

    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    torch.save({"a": Bomb()}, tmp_path / name)
    with pytest.raises(UserError, match=rf"has its weights as {name} alone, a format that can run code"):
        load_causal_lm(ModelConfig(model_name_or_path=str(tmp_path)))
    assert not witness.exists()


def test_an_adapter_in_a_pickle_is_refused_and_never_opened(tmp_path: Path, tiny_model: str) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "x"}')
    torch.save({}, tmp_path / "adapter_model.bin")
    with pytest.raises(UserError, match=r"adapter_model\.safetensors: cannot be read \(No such file"):
        load_adapter(torch.nn.Linear(1, 1), str(tmp_path))  # type: ignore[arg-type]


# ---------------------------------------------------------------- directories that were copied in part


@pytest.fixture
def copied(tiny_model: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "copied"))


def load(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_causal_lm(ModelConfig(model_name_or_path=str(path)))
    assert str(caught.value).startswith("--model_name_or_path: ")
    return str(caught.value)


def test_a_model_whose_weights_were_cut_short(copied: Path) -> None:
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "was it copied as a whole?" in load(copied)
    weights.unlink()
    assert "could not load" in load(copied)


def test_a_model_of_several_files_one_of_which_is_missing(copied: Path) -> None:
    names = list(shapes(copied / "model.safetensors"))
    (copied / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, "model-00002-of-00002.safetensors")}))
    assert f"lacks model-00002-of-00002.safetensors, which {INDEX} lists" in load(copied)
    (copied / INDEX).write_text(json.dumps({"weight_map": {"a": "../../outside.safetensors"}}))
    assert "'../../outside.safetensors' is no name of a file beside it" in load(copied)
    (copied / INDEX).write_text('{"weight_map": [1]}')
    assert "found no weight_map" in load(copied)


def test_a_model_that_lacks_some_weights_is_not_filled_up_with_random_ones(copied: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copied / "model.safetensors")
    lost = next(name for name in weights if "layers.1" in name)
    save_file({name: value for name, value in weights.items() if name != lost}, copied / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    assert f"lacks 1 of the model's weights ({lost}, ...), which would be random" in load(copied)


def test_a_config_that_is_none(copied: Path) -> None:
    settings = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(settings | {"hidden_size": "wide"}))
    assert "could not load" in load(copied)
    (copied / "config.json").write_text("{")
    assert "could not load" in load(copied)
    assert "\n" not in load(copied)


@pytest.mark.parametrize("text", ["", "[]", '{"base_model_fingerprint": 5}'])
def test_a_damaged_record_of_an_adapters_base(tmp_path: Path, text: str) -> None:
    (tmp_path / "raft_adapter.json").write_text(text)
    with pytest.raises(UserError, match=r"raft_adapter\.json"):
        recorded_fingerprint(str(tmp_path))


def test_outputs_of_a_head(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(SOUND)
    assert num_labels(str(tmp_path)) == 5
    refuse_damaged(tmp_path, flag="--x")


# ---------------------------------------------------------------- code that comes with a model


def test_code_of_a_model_runs_by_its_flag_alone_and_is_announced(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    witness = tmp_path / "ran"
    settings = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (copied / "config.json").write_text(json.dumps(settings))
    (copied / "own.py").write_text(
        f"from pathlib import Path\nfrom transformers import PretrainedConfig\nPath({str(witness)!r}).touch()\n"
        "class OwnConfig(PretrainedConfig):\n    model_type = 'own'\n"
    )
    with pytest.raises(UserError, match=r"That is --trust_remote_code; read the code first") as caught:
        load_config(str(copied))
    assert "could not load" in str(caught.value)
    assert not witness.exists()
    assert capsys.readouterr().err == ""
    load_config(str(copied), trust_remote_code=True)
    assert witness.exists()
    assert f"--trust_remote_code: running the Python code that comes with {copied}" in capsys.readouterr().err
