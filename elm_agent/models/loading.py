"""From what the user calls a model to the frozen network and its tokenizer. Knows nothing of generation.

A name is, in this order: an embedded model, a folder or ``.gguf`` file on this machine, an id on the model
hub. Code that comes with a model is never run, weights in pickle files are never read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from elm_agent.errors import ModelUnavailable
from elm_agent.models.convert import check_gguf, convert_gguf
from elm_agent.models.download import file_sha256
from elm_agent.models.fingerprint import fingerprint_of, remembered_digest, weight_files
from elm_agent.models.pip import Progress
from elm_agent.models.pull import cache_folder, pull
from elm_agent.models.quiet import first_line, quiet
from elm_agent.models.registry import EMBEDDED
from elm_agent.records import ModelFingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A network in eval mode without trainable parameters, its tokenizer and what identifies both."""

    name: str
    folder: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fingerprint: ModelFingerprint


def load_pretrained(
    name: str,
    *,
    gguf_file: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    cache_dir: Path | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> Loaded:
    """Load a model by any of its names; see ``resolve`` for the arguments.

    ``device``: ``cpu``, ``cuda`` or ``auto`` (cuda where there is one). ``dtype``: a floating type of torch by
    name, or ``auto``: float32 on CPU, which is quickest there, and the stored type on cuda.

    Raises:
        ModelUnavailable: the files are not here and could not be fetched, or cannot be read.
    """
    folder = resolve(name, gguf_file=gguf_file, cache_dir=cache_dir, offline=offline, progress=progress)
    weight_files(folder)
    where = pick_device(device)
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=pick_dtype(dtype, where),
                attn_implementation=None,  # transformers' choice: SDPA, or "eager" where a family has no other
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        except Exception as error:  # transformers reports a bad folder with whatever its parser meets
            raise ModelUnavailable(f"the model in {folder} cannot be loaded: {first_line(error)}") from error
    _refuse_gaps(folder, report)
    model = model.to(where).eval().requires_grad_(False)
    width = int(model.get_input_embeddings().weight.shape[1])
    cache = cache_folder(cache_dir)
    return Loaded(
        name=name,
        folder=folder,
        model=model,
        tokenizer=tokenizer,
        fingerprint=fingerprint_of(name, folder, tokenizer, width=width, cache=cache),
    )


def resolve(
    name: str,
    *,
    gguf_file: str | None = None,
    cache_dir: Path | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> Path:
    """The folder of a model, fetched and converted first where needed.

    ``gguf_file`` names the GGUF file inside a folder or hub repository. ``offline`` forbids the network.

    Raises:
        ModelUnavailable: nothing of that name, or it could not be fetched.
    """
    if name in EMBEDDED:
        return pull(name, cache_dir=cache_dir, offline=offline, progress=progress)
    path = Path(name).expanduser()
    if not path.exists():
        if _looks_like_path(name):
            raise ModelUnavailable(f"model {name!r}: no such file or folder")
        path = _from_hub(name, gguf_file=gguf_file, cache_dir=cache_dir, offline=offline)
    if path.is_file():
        return _converted(path, cache_folder(cache_dir))
    if gguf_file is not None:
        return _converted(path / gguf_file, cache_folder(cache_dir))
    if not (path / "config.json").is_file():
        ggufs = sorted(file.name for file in path.glob("*.gguf"))
        hint = f"; set `gguf_file` to one of {', '.join(ggufs)}" if ggufs else ""
        raise ModelUnavailable(f"{path} is not a model folder: it has no config.json{hint}")
    return path


def pick_device(device: str) -> torch.device:
    """The torch device of a ``device`` setting. Raises ``ModelUnavailable`` for cuda without a GPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelUnavailable("device 'cuda': torch sees no GPU here; set device to 'cpu' or 'auto'")
    return torch.device(device)


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype | str:
    """What ``from_pretrained`` is told: a torch type, or ``auto`` for the stored one."""
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    chosen: torch.dtype = getattr(torch, dtype)
    return chosen


def why_eager(model: PreTrainedModel) -> str | None:
    """Why attention is computed in steps of its own, in one phrase; None where torch does it in one."""
    chosen = model.config._attn_implementation
    return None if chosen == "sdpa" else f"transformers has no SDPA for it, so attention is {chosen!r}"


def _converted(gguf: Path, cache: Path) -> Path:
    check_gguf(gguf)
    digest = remembered_digest(gguf, file_sha256, cache)
    folder = cache / "models" / f"gguf-{digest[:16]}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if not folder.is_dir():  # another process may have been quicker
                convert_gguf(gguf, folder)
    return folder


def _from_hub(name: str, *, gguf_file: str | None, cache_dir: Path | None, offline: bool) -> Path:
    wanted = [gguf_file] if gguf_file else ["*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model"]
    known = f"embedded models are {', '.join(EMBEDDED)}"
    try:
        return Path(
            snapshot_download(
                name,
                cache_dir=cache_dir / "hub" if cache_dir else None,  # None: shared with other programs
                local_files_only=offline,
                allow_patterns=wanted,
                ignore_patterns=None if gguf_file else ["*/*", "consolidated*"],
            )
        )
    except HFValidationError:
        raise ModelUnavailable(f"unknown model {name!r}: not an embedded name, a path or a hub id; {known}") from None
    except GatedRepoError:
        raise ModelUnavailable(f"model {name!r} is gated: accept its terms on the hub and log in there") from None
    except RepositoryNotFoundError:
        raise ModelUnavailable(f"unknown model {name!r}: no such folder here and no such hub id; {known}") from None
    except LocalEntryNotFoundError:
        why = "the setting `offline` is on: turn it off" if offline else "the hub is out of reach: try again later"
        raise ModelUnavailable(
            f"model {name!r} is no folder here and not in the hub cache, and {why}, or give a local folder; {known}"
        ) from None
    except OSError as error:
        raise ModelUnavailable(f"model {name!r} could not be fetched from the hub: {first_line(error)}") from error


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.endswith(".gguf") or name.count("/") > 1 or "\\" in name


def _refuse_gaps(folder: Path, report: dict[str, list[str]]) -> None:
    missing = sorted(report["missing_keys"])
    if missing:  # transformers would leave them random
        raise ModelUnavailable(
            f"the weights in {folder} are incomplete: {len(missing)} missing, such as {missing[0]}"
        )
