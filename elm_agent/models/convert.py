"""A GGUF file made into an ordinary model folder, once: safetensors, configuration, tokenizer, template.

Weights are kept in float32: what the quantised blocks mean is exact there, and rounding them a second time to
sixteen bits would make another model of them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, modeling_gguf_pytorch_utils

from elm_agent.errors import ModelUnavailable
from elm_agent.models.quiet import first_line, quiet


def convert_gguf(gguf: Path, folder: Path) -> Path:
    """Write the model in ``gguf`` to ``folder``, which appears only when whole.

    Raises:
        ModelUnavailable: not a GGUF file, or one of an architecture that transformers cannot read.
    """
    check_gguf(gguf)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        made = Path(temporary) / "model"
        with quiet(), _without_gguf_bar():
            try:
                _convert(gguf, made)
            except OSError:
                raise  # of the disk; transformers reports a bad file with whatever its parser meets
            except Exception as error:
                raise ModelUnavailable(f"{gguf} cannot be converted: {first_line(error)}") from error
        _sync(made)
        made.rename(folder)
    return folder


def check_gguf(path: Path) -> None:
    """Raise ``ModelUnavailable`` unless the file begins as every GGUF file does."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelUnavailable(f"{path} cannot be read: {error.strerror}") from None
    if magic != b"GGUF":
        raise ModelUnavailable(f"{path} is not a GGUF file: it begins with {magic!r}, expected b'GGUF'")


def _convert(gguf: Path, folder: Path) -> None:
    where: dict[str, Any] = {
        "pretrained_model_name_or_path": gguf.parent,
        "gguf_file": gguf.name,
        "local_files_only": True,
        "trust_remote_code": False,  # what lies beside the file may name code to run
    }
    tokenizer = AutoTokenizer.from_pretrained(**where)
    dequantised = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    config = dequantised.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # A model that came from GGUF refuses to be saved, so its weights move to a fresh one, without a copy.
    with torch.device("meta"):
        fresh = AutoModelForCausalLM.from_config(config)
    fresh.load_state_dict(dequantised.state_dict(), assign=True)
    fresh.tie_weights()
    fresh.generation_config = dequantised.generation_config
    fresh.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def _without_gguf_bar() -> Iterator[None]:
    # This one bar of transformers does not heed its switch for progress bars.
    bar = modeling_gguf_pytorch_utils.tqdm
    modeling_gguf_pytorch_utils.tqdm = lambda tensors, **_: tensors
    try:
        yield
    finally:
        modeling_gguf_pytorch_utils.tqdm = bar


def _sync(folder: Path) -> None:
    """Make the files durable before the folder gets its name: a name that exists means whole files."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
