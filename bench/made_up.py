"""Data and a model for bench/gpu.sh where there is no network: the size of the job, no content.

    python bench/made_up.py FOLDER

FOLDER/model: DistilBERT's published size (66M parameters), random weights, the demo's tokenizer.
FOLDER/texts: 25,000 training texts with token counts like IMDb's at 512 tokens (log-normal, mean
266, 14 % truncated). For speed and memory only: there is nothing to learn in them.
"""

import sys
from pathlib import Path

import numpy as np
from datasets import Dataset
from transformers import AutoTokenizer, DistilBertConfig, DistilBertForMaskedLM

DEMO = Path(__file__).parent.parent / "demo"


def main(folder: str) -> None:
    target = Path(folder)
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "model")
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(target / "model")
    DistilBertForMaskedLM(DistilBertConfig()).save_pretrained(target / "model")

    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.lognormal(5.43, 0.74, 25_000).astype(int) + 2, 1000)
    words = np.array([word for word in tokenizer.get_vocab() if word.isalpha()])
    texts = [" ".join(rng.choice(words, length)) for length in lengths]
    data = Dataset.from_dict({"text": texts, "label": [row % 2 for row in range(len(texts))]})
    (target / "texts").mkdir(parents=True, exist_ok=True)
    data.to_parquet(str(target / "texts" / "train.parquet"))


if __name__ == "__main__":
    main(sys.argv[1])
