"""Every choice of a run: its name, default, unit and reason. All of them are command-line flags.

In: nothing. Out: `Config` (train.py) and `EvalConfig` (eval.py), into which runtime/flags.py parses
the command line. Independent of: how it does so, torch, disks.
"""

import dataclasses

from runtime.flags import (
    ABOVE_0,
    ABOVE_0_UP_TO_1,
    AT_LEAST_0,
    AT_LEAST_1,
    BETWEEN_0_AND_1,
    FROM_0_BELOW_1,
    MINUS_1_OR_ABOVE_0,
    PROBABILITY_OR_STORED,
    SEED,
    SHARE_OR_STEPS,
    adjustable,
    flag,
    one_of,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """A training run.

    Flags that transformers' TrainingArguments has too mean the same here, but for eval_steps: that
    evaluates on a sample, and validate_steps on the whole validation split.
    """

    # Data
    # Its path may change: a resumed run compares the texts themselves.
    dataset: str = adjustable("stanfordnlp/imdb", "Hub name, folder, or file of labelled texts")
    dataset_config_name: str | None = flag(None, "configuration of a Hub data set that has several")
    dataset_revision: str | None = flag(None, "branch, tag or commit of a Hub data set")
    text_column: str = flag("text", "column of texts; two, as in title,body, for pairs of texts")
    label_column: str = flag("label", "column of class labels: names or numbers")
    drop_invalid: bool = flag(False, "leave out rows without a text or a label")
    soft_labels: str | None = flag(
        None,
        "prefix of columns with a probability of each class, as p_ of p_neg and p_pos, which "
        "eval.py --output writes: learnt in place of the one class, in rows that have them",
    )
    train_split: str = flag("train", "split to train on")
    validation_split: str | None = flag(
        None, "split to validate on; default: validation, valid, dev or val, if there is one"
    )
    validation_dataset: str | None = adjustable(None, "file or data set to validate on")
    test_split: str = adjustable("test", "split for eval.py; train.py never opens it")
    validation_size: float | None = flag(
        None,
        "share of --train_split to validate on; default: 0.3, if nothing else",
        BETWEEN_0_AND_1,
    )
    validation_seed: int = flag(0, "seed for drawing that share; independent of --seed", SEED)
    max_train_samples: int | None = flag(None, "train on at most N texts, stratified", AT_LEAST_1)
    max_validation_samples: int | None = flag(None, "validate on at most N texts", AT_LEAST_1)

    # Model
    model: str = flag("distilbert/distilbert-base-uncased", "Hub name or folder of a model")
    revision: str | None = flag(None, "branch, tag or commit of a Hub model")
    keep_head: bool = flag(False, "start from the head of --model, too, and keep its classes")
    max_length: int = flag(512, "tokens kept of a text", AT_LEAST_1)
    truncation: str = flag(
        "head",
        "what is kept of a longer text; head_tail: a quarter from its start, the rest from its end",
        one_of("head", "tail", "head_tail"),
    )
    last_layer: str = flag(
        "first_token",
        "first_token: only what the classifier reads, where that is the first token; all: as it is",
        one_of("first_token", "all"),
    )
    attention_dropout: float = flag(
        0.0,
        "used in place of the model's; 0 is faster on a CPU and not measurably less accurate",
        FROM_0_BELOW_1,
    )
    dropout: float | None = flag(None, "every other dropout; default: the model's", FROM_0_BELOW_1)

    # Optimization
    num_train_epochs: float = flag(3.0, "passes over the training split", ABOVE_0)
    max_steps: int = flag(-1, "number of steps; -1: by --num_train_epochs", MINUS_1_OR_ABOVE_0)
    # Global batch: these two times the number of processes. A resumed run keeps it.
    per_device_train_batch_size: int = adjustable(16, "texts per process and pass", AT_LEAST_1)
    gradient_accumulation_steps: int = adjustable(1, "forward passes per step", AT_LEAST_1)
    per_device_eval_batch_size: int = adjustable(64, "texts per pass in evaluation", AT_LEAST_1)
    max_tokens_per_forward: int | None = adjustable(
        None,
        "at most N tokens per process and pass, padding included: as few passes as that takes, in "
        "place of --gradient_accumulation_steps; the batch stays the same",
        AT_LEAST_1,
    )
    train_sampling_strategy: str = flag(
        "group_by_length",
        "group_by_length batches texts of like length; random is plain shuffling",
        one_of("group_by_length", "random"),
    )
    learning_rate: float = flag(2e-5, "peak rate; small models such as MiniLM need 1e-4", ABOVE_0)
    lr_scheduler_type: str = flag("linear", "after warm-up", one_of("linear", "cosine", "constant"))
    warmup_steps: float = flag(0.06, "steps of warm-up; below 1: a share of all", SHARE_OR_STEPS)
    class_weights: str | None = flag(
        None, "balanced: all classes weigh alike in the loss", one_of("balanced")
    )
    label_smoothing_factor: float = flag(
        0.0, "share of each label that is spread over all classes", FROM_0_BELOW_1
    )
    weight_decay: float = flag(0.01, "for weight matrices; biases and norms have none", AT_LEAST_0)
    max_grad_norm: float = flag(1.0, "clip the gradient to this norm; 0: no clipping", AT_LEAST_0)
    seed: int = flag(42, "of the new head, the order of texts and the dropout", SEED)

    # Output
    output_dir: str = adjustable(".", "holds best/, last/ and runs/")
    overwrite: bool = adjustable(False, "delete the run in --output_dir first")
    logging_steps: int = adjustable(50, "steps between scalars", AT_LEAST_1)
    eval_steps: int = adjustable(50, "steps between evaluations on --eval_samples", AT_LEAST_1)
    eval_samples: int = adjustable(150, "validation texts in such an evaluation", AT_LEAST_1)
    save_steps: int = adjustable(200, "steps between writes of last/", AT_LEAST_1)
    max_save_share: float = adjustable(
        0.02,
        "share of the time that --save_steps may take; more saves are skipped",
        ABOVE_0_UP_TO_1,
    )
    validate_steps: int | None = flag(
        None, "steps between full validations, which choose best/; default: an epoch", AT_LEAST_1
    )
    metric_for_best_model: str = flag(
        "accuracy",
        "what chooses best/; macro_f1: the mean of the classes' F1, however few their texts",
        one_of("accuracy", "macro_f1", "loss"),
    )
    early_stopping_patience: int | None = flag(
        None, "end after so many validations in a row without a better one", AT_LEAST_1
    )

    # Machine
    mixed_precision: str = flag(
        "auto",
        "auto: what accelerate's launcher or config file says, else bf16 where the GPU has it",
        one_of("auto", "no", "fp16", "bf16"),
    )
    num_threads: int | None = adjustable(None, "CPU threads; default: cores/processes", AT_LEAST_1)
    gradient_checkpointing: bool = adjustable(
        False, "less memory, more time: layers are computed again in the backward pass"
    )
    torch_compile: bool = flag(False, "compile the model; minutes of start-up on CPU")
    full_determinism: bool = flag(False, "use deterministic GPU kernels; slower")


@dataclasses.dataclass(frozen=True)
class LookConfig(Config):
    """A look at the texts of a training, before it. Flags are those of train.py."""

    json: str | None = adjustable(None, "file for what is found, for programs")


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """An evaluation. Data flags that are not given are those of the training."""

    ckpt: str = flag("best", "best/, or the folder or Hub name of another classifier")
    text: tuple[str, ...] = flag((), "a text to classify; may be repeated")
    input: str | None = flag(None, "file of texts to classify")
    min_probability: str | None = flag(
        None,
        "below it a prediction for --text or --input has no label; stored: that of "
        "--store_threshold",
        PROBABILITY_OR_STORED,
    )
    output: str | None = flag(None, "where predictions for --input go: .csv, .jsonl, .parquet, ...")
    long: str = flag(
        "cut",
        "of a longer text than the model reads; cut: as in the training; window: all of it, in "
        "overlapping windows whose logits are averaged",
        one_of("cut", "window"),
    )
    dataset: str | None = flag(None, "Hub name, folder or file; default: that of the training")
    dataset_config_name: str | None = flag(None, "default: that of the training")
    dataset_revision: str | None = flag(None, "default: that of the training")
    text_column: str | None = flag(None, "default: that of the training")
    label_column: str | None = flag(None, "default: that of the training")
    drop_invalid: bool = flag(
        False,
        "leave out rows of the test split without a text or a label, as always if the training did",
    )
    split: str = flag(
        "test", "validation: the texts that chose the step of best/", one_of("test", "validation")
    )
    test_split: str | None = flag(None, "default: that of the training")
    max_test_samples: int | None = flag(None, "test on at most N texts, stratified", AT_LEAST_1)
    per_device_eval_batch_size: int = flag(64, "texts per forward pass", AT_LEAST_1)
    report: str | None = flag(
        None,
        "default: report_test.json, or report_<name of --dataset>.json, in --ckpt, or, if that is "
        "on the Hub, here",
    )
    predictions: str | None = flag(None, "file for each text with its true and predicted label")
    errors: str | None = flag(None, "file for the mistakes, the most confident first")
    compare: tuple[str, ...] = flag((), "another checkpoint, on the same texts; may be repeated")
    seeds: tuple[str, ...] = flag((), "--ckpt of another seed, for --compare; may be repeated")
    thresholds: bool = flag(False, "print how many validation texts are above a probability")
    store_threshold: float | None = flag(
        None, "keep this probability in --ckpt, with --thresholds", FROM_0_BELOW_1
    )
    html: str | None = flag(None, "file for the report as a page with plots, for a browser")
    overwrite: bool = flag(False, "replace files that eval.py wrote; never others")
    num_threads: int | None = flag(None, "CPU threads; default: all cores", AT_LEAST_1)
