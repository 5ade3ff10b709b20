"""A model of train.py to the Hub, with the scores of eval.py's reports in its card.

    python recipes/push_to_hub.py --ckpt best/ --name user/model [--private] [--dry_run]

In: best/. Out: a commit in the repository of that name, made if need be. Independent of: training.
"""

import dataclasses
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import Config
from runtime.flags import UserError, flag, parse, parse_or_exit

ON_HUB = (lambda name: re.fullmatch(r"[\w.-]+/[\w.-]+", name), "USER/MODEL, letters, digits, -_.")


@dataclasses.dataclass(frozen=True)
class PushConfig:
    """A model of train.py to the Hub."""

    ckpt: str = flag("best", "the best/ of a training; eval.py's reports in it go into the card")
    name: str | None = flag(None, "of the model on the Hub, as USER/MODEL", ON_HUB)
    private: bool = flag(False, "make a repository that only you (or your organization) can read")
    dry_run: bool = flag(False, "show the files and the card, and send nothing")
    overwrite: bool = flag(False, "replace all files of a repository; its history keeps them")
    with_hashes: bool = flag(False, "send hashes of the texts, by which eval.py knows them again")


if __name__ == "__main__":
    GIVEN = parse_or_exit(PushConfig, config_file=False)  # before imports that take seconds

import contextlib

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import HTTPError, RepositoryNotFoundError

from report.thresholds import NOTE, STORED, stored_threshold
from runtime.card import card_for_hub, checksum, json_for_hub, load_json
from runtime.checkpoint import read_training_settings
from runtime.folders import CARD, MANIFEST
from runtime.hub import in_few_words, weight_files
from runtime.processes import run_command
from runtime.seen import FILES


def main(argv=None) -> None:
    push(parse(PushConfig, argv, config_file=False))


def push(config: PushConfig) -> None:
    if not config.name:
        raise UserError("--name: is missing; give USER/MODEL")
    token = get_token()
    if not (token or config.dry_run):
        raise UserError(f"--name {config.name}: no token; give one by hf auth login, or HF_TOKEN")
    folder, manifest = Path(config.ckpt), Path(config.ckpt, MANIFEST)
    before = manifest.read_bytes() if manifest.is_file() else b""
    if not (read_training_settings(folder) and before):
        raise UserError(f"--ckpt {folder}: train.py did not write it; give the best/ of a training")
    card, sent = card_for_hub(folder, Config, config.name), json_for_hub(folder)
    if (threshold := stored_threshold(folder, checksum(weight_files(folder)))) is not None:
        sent[STORED] = folder / STORED
        card.text += NOTE.format(threshold) * (STORED not in card.text)
    sent[CARD] = str(card).encode()
    stays = sort_files(folder, sent, config.with_hashes)
    files = [CommitOperationAdd(name, content) for name, content in sent.items()]
    for file in files:
        print(f"{file.upload_info.size:>15,} bytes  {file.path_in_repo}")
    for name, why in stays.items():
        print(f"{'stays here':>21}  {name}: {why}")
    if config.dry_run:
        print(f"\n{card}")
        return
    with hub_explained(config.name):
        print(f"sent: {send(config, token, files, before)}")


# ---------------------------------------------------------------- what goes and what stays


def sort_files(folder: Path, sent: dict[str, Path | bytes], with_hashes: bool) -> dict[str, str]:
    """Why each file stays that does. The others are added to `sent`: those that train.py wrote."""
    listed, stays = load_json(folder / MANIFEST), {MANIFEST: "sums of the files as they are here"}
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for name in sorted(there - {*sent, *stays}):
        if name == STORED or Path(name).match("report_*.json"):
            stays[name] = "of other weights"
        elif name not in listed:
            stays[name] = "train.py did not write it"
        elif name in FILES and not with_hashes:
            stays[name] = "its hashes tell whether a text was trained on (--with_hashes)"
        else:
            sent[name] = folder / name
    return stays


# ---------------------------------------------------------------- the Hub


def send(config: PushConfig, token: str, files: list[CommitOperationAdd], before: bytes) -> str:
    """The address of the commit. All files are in one: nobody sees half of them.

    `before`: the manifest from which they were chosen. Raises `UserError` if it is another now.
    """
    api, info = HfApi(token=token), None
    with contextlib.suppress(RepositoryNotFoundError):
        info = api.model_info(config.name)
    there = {file.rfilename for file in info.siblings} - {".gitattributes"} if info else set()
    if there and not config.overwrite:
        raise UserError(
            f"--name {config.name}: holds {len(there)} files, such as {min(there)}; give another "
            "name, or --overwrite to replace them all (its history keeps them)"
        )
    if info and config.private and not info.private:
        raise UserError(f"--private: {config.name} is public; make it private there, or leave it")
    if not info:
        api.create_repo(config.name, private=config.private or None)  # None: as the account has it
    gone = there - {file.path_in_repo for file in files}
    changes = [*files, *map(CommitOperationDelete, sorted(gone))]
    api.preupload_lfs_files(config.name, files)  # may take long
    if Path(config.ckpt, MANIFEST).read_bytes() != before:
        raise UserError(f"--ckpt {config.ckpt}: a training replaced it meanwhile; give it again")
    # With its parent: refused if somebody else's came meanwhile, whose files are not in `there`.
    about = {"commit_message": "Model, card and scores", "parent_commit": info and info.sha}
    return api.create_commit(config.name, changes, **about).commit_url


@contextlib.contextmanager
def hub_explained(name: str):
    """What may go wrong at the Hub or on the way there, as one `UserError`."""
    try:
        yield
    except (HTTPError, OSError, ValueError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        raise UserError(
            f"--name {name}: {constants.ENDPOINT} did not take it ({in_few_words(error)}); "
            f"{REMEDIES.get(status, 'check the network and the name, and run the command again')}"
        ) from None


WRITING = "give a token that may write there (huggingface.co/settings/tokens), or your own name"
REMEDIES = {401: "give a token that is valid by hf auth login, or HF_TOKEN", 403: WRITING}


if __name__ == "__main__":
    run_command(lambda: push(GIVEN))
