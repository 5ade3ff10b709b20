"""Names to local folders or the Hub, and loading from either with one-line errors.

In: what a user wrote after --dataset, --model or --ckpt. Out: a path, or None for a name on the
Hub; what `from_pretrained` loads. Independent of: what is loaded and for what.
"""

import contextlib
import os
import pickle
import textwrap
from functools import lru_cache
from pathlib import Path

from huggingface_hub import constants, get_session, is_offline_mode, snapshot_download
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import logging as hub_logging
from safetensors import SafetensorError
from transformers.utils import logging

from runtime.flags import UserError, is_out_of_memory
from runtime.formats import format_of

logging.disable_progress_bar()  # one per group of tensors while weights load
logging.set_verbosity_error()  # and a table saying that the head is new, which here it should be
hub_logging.set_verbosity_error()  # and that a model has no file of what it has seen


def locate(name: str, flag: str, revision: str | None = None) -> Path | None:
    """The local path that `name` means, or None for a name on the Hub.

    A Hub name is probed for first, because the Hub's own code retries for 23 s before it gives up.
    """
    path = Path(name)
    if os.path.exists(path):
        if revision:
            raise UserError(
                f"{flag} {name}: a local path has no revision {revision}; give one or the other"
            )
        return path
    is_file = format_of(path) or ("." in name and "/" not in name)  # such as reviews.xlsx
    if is_file or path.is_absolute() or name.startswith((".", "~")):
        raise UserError(f"{flag} {name}: no such file or folder; check the path")
    if name.count("/") > 1 or not name.strip("/"):
        raise UserError(f"{flag} {name}: no such folder, nor a Hub name (OWNER/NAME); check it")
    if not is_offline_mode():
        try:
            probe(constants.ENDPOINT)
        except Exception as error:  # whatever the HTTP library of the day raises for "no network"
            raise UserError(
                f"{flag} {name}: {constants.ENDPOINT} does not answer ({type(error).__name__}); "
                "give a local path, or set HF_HUB_OFFLINE=1 if it was downloaded before"
            ) from None
    return None


def full_path(name: str) -> str:
    """A local path so that it means the same from any folder; a Hub name as it is. (Links stay
    links: what they point to may change.)"""
    return os.path.abspath(name) if os.path.exists(name) else name


@lru_cache  # one round trip per start, not one per name
def probe(endpoint: str) -> None:
    get_session().head(endpoint, timeout=10)


def require_downloaded(name: str) -> None:
    """Raises ValueError, offline, for a data set that was never downloaded under that name.

    The datasets library would take whatever lies in its cache under it: a local folder of the same
    name, which another project has read.
    """
    folder = repo_folder_name(repo_id=name, repo_type="dataset")
    if is_offline_mode() and not Path(constants.HF_HUB_CACHE, folder).exists():
        raise ValueError("was not downloaded before")


def hub_remedy(*choices: str) -> str:
    """What to do if the Hub's code could not load what it was to load.

    `choices`: what else than the name may be wrong.
    """
    folder = Path(constants.HF_HUB_CACHE)
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        return f"set HF_HOME to a folder that can be written, which {folder.parent} is not"
    hint = " (or unset HF_HUB_OFFLINE to download it)" * is_offline_mode()
    return ", ".join([f"check the name{hint}", *choices])


@lru_cache  # once for the texts and once for their hashes
def fetch_files(name: str, revision: str | None, *patterns: str) -> Path | None:
    """The folder with those files of a model, downloaded if it is on the Hub; None if it cannot be
    reached. Some or all of the files may not be there."""
    path = locate(name, "--model", revision)
    if path:
        return path
    with contextlib.suppress(OSError, ValueError):  # what snapshot_download documents
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))


def load_pretrained(auto_class, name: str, revision: str | None = None, flag="--model", **options):
    """`auto_class.from_pretrained`, its many failures as one `UserError`. Runs no remote code."""
    path = locate(name, flag, revision)
    if path:
        refuse_adapter(path, f"{flag} {name}")
    if path and not (path / "config.json").is_file():
        raise UserError(
            f"{flag} {name}: holds no config.json; give a folder that save_pretrained wrote"
        )
    try:
        return auto_class.from_pretrained(
            str(path or name), revision=revision or "main", trust_remote_code=False, **options
        )
    except LOADING_ERRORS as error:
        if is_out_of_memory(error):  # the folder is sound
            raise
        remedy = "give a folder that save_pretrained wrote whole" if path else hub_remedy()
        raise UserError(
            f"{flag} {name}: cannot be loaded ({in_few_words(error)}); {remedy}"
        ) from None


def refuse_adapter(folder: Path, given: str) -> None:
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{given}: holds an adapter (LoRA), not a whole model; make one with peft's "
            "merge_and_unload() and save_pretrained, and give that folder"
        )


def in_few_words(error: Exception) -> str:
    return textwrap.shorten(str(error), 200, placeholder=" ...")


# In the order in which from_pretrained looks for them; in pieces, if large.
WEIGHTS = (
    "model.safetensors",
    "model-*-of-*.safetensors",
    "pytorch_model.bin",
    "pytorch_model-*-of-*.bin",
)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights of a saved model; [] if there are none."""
    kinds = [sorted(folder.glob(pattern)) for pattern in WEIGHTS]
    return next(filter(None, kinds), [])


def find_checkpoint(name: str, flag="--ckpt") -> Path:
    """The folder of a saved model; that of a name on the Hub is the cache, with its files."""
    path = Path(name)
    if path.exists() or name.count("/") != 1 or path.is_absolute() or path.name in ("best", "last"):
        return path
    locate(name, flag)
    try:
        small = ["*.json", "*.txt", "*.model", "*.npy", "*.npz"]
        folder = Path(snapshot_download(name, allow_patterns=[*small, *WEIGHTS[:2]]))
        if not weight_files(folder):
            folder = Path(snapshot_download(name, allow_patterns=[*small, *WEIGHTS[2:]]))
    except (OSError, ValueError) as error:  # what snapshot_download documents
        raise UserError(
            f"{flag} {name}: no such folder, and not on the Hub ({in_few_words(error)}); "
            f"{hub_remedy()}"
        ) from None
    return folder


LOADING_ERRORS = (
    OSError,  # a file is missing, or the network
    ValueError,  # not JSON, an unknown kind of model
    *(KeyError, TypeError, StrictDataclassError),  # fields of a config that are not what they name
    *(SafetensorError, RuntimeError, pickle.UnpicklingError),  # truncated weights
    ImportError,  # a library that only this tokenizer needs
)


def require_weights(model, report: dict, given: str, new_head: bool) -> None:
    """Raises `UserError` unless all weights came from the file, by from_pretrained's `report`.

    `new_head`: weights outside the encoder may be missing or of another task; they start anew.
    """
    absent = report["missing_keys"] | {key for key, *_ in report["mismatched_keys"]}
    inside = {key for key in absent if key.startswith(f"{model.base_model_prefix}.")}
    if new_head:  # many an encoder that was trained on masked words alone has no pooler either
        absent = {key for key in inside if ".pooler." not in key}
    if absent and not inside:
        raise UserError(f"{given}: has no classification head; train it, and give its best/")
    if absent:
        remedy = "check its config.json" if new_head else "give the best/ that train.py wrote"
        raise UserError(
            f"{given}: {len(absent)} of its weights are missing or of another size, such as "
            f"{min(absent)}; {remedy}"
        )
