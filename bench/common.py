"""What the scripts of bench/ share: the command and the file of a result."""

import json
import shlex
import sys
from pathlib import Path


def this_command(file: Path | None) -> str:
    """The command as it was typed, for the JSON file that it writes, without that file's name."""
    words = ["FILE" if word == str(file) else word for word in sys.argv[1:]]
    return shlex.join(["python", f"bench/{Path(sys.argv[0]).name}", *words])


def write_json(file: Path | None, result: dict) -> None:
    if file:
        file.write_text(json.dumps(result, indent=1) + "\n")
