"""A CSV file of many rows, read and predicted: time and peak memory of a process each.

    python bench/large_file.py --rows 1000000 --folder SCRATCH --json FILE

The texts have 150 to 190 words, about 1,000 characters. The model is the demo's after one step,
which reads the first 32 tokens of each: the prediction says what the file costs, not what a model
does. SCRATCH is a new folder, which takes about 2.2 kB of disk per row.
"""

import argparse
import csv
import os
import random
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from bench.common import this_command, write_json
from runtime.environment import describe_machine

READ = """
import sys
from runtime.splits import read_table
from runtime.tables import label_rows
print(len(label_rows(read_table(sys.argv[1], "train"), "text", "label")))
"""


def write_rows(path: Path, rows: int) -> None:
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=5)) for _ in range(5000)]
    with path.open("w", newline="", encoding="utf-8") as file:
        write = csv.writer(file).writerow
        write(["id", "text", "label"])
        for number in range(rows):
            text = " ".join(rng.choices(words, k=rng.randint(150, 190)))
            write([number, text, "no" if number % 2 else "yes"])


def measure(*words: str) -> dict[str, float]:
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, *words], cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{words[:3]} failed")
    seconds = time.perf_counter() - begun
    return {"seconds": round(seconds, 1), "peak_memory_gb": round(usage.ru_maxrss / 1e6, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.folder.mkdir()
    file, output = args.folder.resolve() / "rows.csv", args.folder.resolve() / "predictions.csv"
    run = args.folder.resolve() / "run"
    write_rows(file, args.rows)
    demo = ["--config=configs/demo.json", "--max_length=32", "--max_steps=1"]
    measure("train.py", *demo, f"--output_dir={run}")
    result = {
        "command": this_command(args.json),
        "machine": describe_machine(),
        "rows": args.rows,
        "file_gb": round(file.stat().st_size / 1e9, 3),
        "imports_alone": measure("-c", "import runtime.splits"),
        "read_and_labelled": measure("-c", READ, str(file)),
        "predicted": measure(
            "eval.py", f"--ckpt={run}/best", f"--input={file}", f"--output={output}"
        ),
    }
    print(result)
    write_json(args.json, result)


if __name__ == "__main__":
    main()
