"""What bench/gpu.sh trains on where there is no network: the size of the job, not its content.

    python bench/made_up.py FOLDER

FOLDER/model: DistilBERT as published (66M parameters) with random weights and the demo's tokenizer.
FOLDER/reviews: 25,000 training texts with token counts as IMDb's at 512 tokens (log-normal, mean
266, 14 % cut). For speed and memory alone: there is nothing to learn in them.
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
    reviews = Dataset.from_dict({"text": texts, "label": [row % 2 for row in range(len(texts))]})
    (target / "reviews").mkdir(parents=True, exist_ok=True)
    reviews.to_parquet(str(target / "reviews" / "train.parquet"))


if __name__ == "__main__":
    main(sys.argv[1])
