"""Stop a run in the middle, resume it, and compare with the run that nothing stopped.

    python bench/resume.py FLAGS OF train.py --output_dir SCRATCH --json FILE

For HF Trainer and for ours, with texts in random order and grouped by length: a checkpoint every 10
steps, an end in the middle of step 25 as by a kill, the same command again. Written is how many of
all weights differ in any bit at the end. Take a number of texts with which step 20 is not the end
of an epoch, and not in the first (`--max_train_samples 208` of 16 a step): elsewhere Trainer's
length grouping resumes exactly, too.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from events import dying_at
from peers import make_trainer

import train
from bench.common import this_command, write_json
from config import Config
from runtime.engines import make_accelerator
from runtime.environment import describe_machine
from runtime.flags import UserError, parse
from runtime.processes import run_command

STOP = 25


def run_trainer(config: Config, order: str, folder: str, resume=False) -> dict[str, torch.Tensor]:
    AcceleratorState._reset_state(reset_partial_state=True)
    run = train.set_up(config, make_accelerator(config))
    output = {"output_dir": f"{config.output_dir}/{folder}", "save_strategy": "steps"}
    trainer = make_trainer(run, train_sampling_strategy=order, save_steps=10, **output)
    trainer.train(resume_from_checkpoint=resume)
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def run_ours(config: Config, order: str, folder: str, resume=False) -> dict[str, torch.Tensor]:
    AcceleratorState._reset_state(reset_partial_state=True)
    output = f"{config.output_dir}/{folder}"
    given = dataclasses.replace(config, train_sampling_strategy=order, output_dir=output)
    given = dataclasses.replace(given, save_steps=10, max_save_share=1.0)
    values = {name: value for name, value in vars(given).items() if value is not None}
    train.main([f"--{name}={value}" for name, value in values.items()])
    return load_file(f"{output}/last/model.safetensors")


def compare(loop, config: Config, order: str) -> dict[str, int]:
    name = f"{loop.__name__}_{order}"
    whole = loop(config, order, f"{name}/whole")
    with dying_at(STOP):
        loop(config, order, f"{name}/stopped")
    resumed = loop(config, order, f"{name}/stopped", resume=True)
    return {
        "weights": sum(tensor.numel() for tensor in whole.values()),
        "weights_that_differ": sum(int((whole[key] != resumed[key]).sum()) for key in whole),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    options, flags = parser.parse_known_args()
    config = parse(Config, flags)
    if Path(config.output_dir).exists():
        raise UserError(f"--output_dir {config.output_dir}: exists; give a folder that does not")
    rows = [
        {"loop": name, "order": order, **compare(loop, config, order)}
        for name, loop in (("HF Trainer", run_trainer), ("ours", run_ours))
        for order in ("random", "group_by_length")
    ]
    print(*rows, sep="\n")
    about = {"command": this_command(options.json), **describe_machine()}
    write_json(options.json, {**about, "stopped_in_step": STOP, "results": rows})


if __name__ == "__main__":
    run_command(main)
