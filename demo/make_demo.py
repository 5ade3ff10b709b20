"""The demo: a review corpus made from a small grammar, and a tiny DistilBERT pretrained on it.

    python demo/make_demo.py corpus     # demo/corpus/train.csv, test.csv and demo/unlabelled.txt
    python demo/make_demo.py model      # demo/model, from masked words of unlabelled.txt alone

In: the seeds below. Out: the same corpus to the byte; a model of the same kind (the bits of its
weights depend on the processor). Word counts alone do not decide a label: half of the texts turn a
word of praise or blame round, by negation, contrast, a rejected opinion, expectation or sarcasm.
"""

import csv
import random
import sys
from pathlib import Path

HERE = Path(__file__).parent
SIZES = {"train": 4000, "test": 1000, "unlabelled": 10000}

# ---------------------------------------------------------------- the grammar

PRAISE = """brilliant charming delightful wonderful superb moving gripping graceful clever warm
funny elegant dazzling fresh tender thrilling witty splendid lovely masterful radiant vivid inspired
satisfying memorable joyful magical beautiful exquisite enchanting captivating stunning lively
sparkling touching generous rich subtle perfect remarkable""".split()
BLAME = """dull boring clumsy awful dreadful tedious lifeless shallow messy bland cold pointless
stale grating forgettable sloppy hollow dreary tiresome ugly wooden painful limp crude muddled
lazy predictable annoying miserable feeble charmless joyless tasteless soulless careless weak
irritating empty cheap terrible""".split()
WORDS = {"+": PRAISE, "-": BLAME}
OTHER = {"+": "-", "-": "+"}

KINDS = {
    "film": ["plot", "acting", "music", "ending", "camera work", "dialogue", "first half", "cast"],
    "book": ["plot", "prose", "ending", "narrator", "dialogue", "first chapter", "hero", "tone"],
    "restaurant": ["soup", "service", "menu", "dessert", "bread", "wine", "main course", "mood"],
    "play": ["staging", "acting", "music", "ending", "second act", "costumes", "dialogue", "cast"],
}
PEOPLE = ["brother", "sister", "neighbour", "boss", "teacher", "aunt", "friend", "barber"]

# {p}: a word that agrees with the label, {n}: one of the other side, {a}: an aspect, {k}: the kind.
DIRECT = [
    "The {a} was {p}.",
    "I found the {a} {p}.",
    "What a {p} {k}.",
    "The {a} struck me as {p} and {p}.",
    "This is a {p} {k} with a {p} {a}.",
    "Everything about the {a} felt {p}.",
]
NEGATION = [
    "The {a} was not {n}.",
    "There was nothing {n} about the {a}.",
    "I would never call the {a} {n}.",
    "It was anything but {n}.",
    "The {a} was far from {n}.",
    "Not once did the {a} seem {n} to me.",
    "Nobody could say that this {k} was {n}.",
]
CONTRAST = [
    "The {a} was {n}, but the {k} as a whole was {p}.",
    "For all its {n} moments, the {k} was {p}.",
    "Although the {a} seemed {n}, I left thinking the {k} {p}.",
    "The {k} was {p}, even if the {a} was {n}.",
    "A {n} {a} did not change how {p} the {k} was.",
    "Despite a {n} {a}, it is a {p} {k}.",
]
REJECTED = [
    "My {who} called it {n}. I could not disagree more.",
    "My {who} said the {a} was {n}, and was wrong.",
    "They call this {k} {n}? Nonsense.",
    "Some papers found it {n}. Do not believe them.",
    "Whoever thinks the {a} {n} was in another room.",
]
EXPECTED = [
    "I expected a {n} {k}, and got a {p} one.",
    "It promised to be {n} and turned out {p}.",
    "The {k} that was to be {n} proved {p}.",
    "I came for something {n}; the {a} was {p}.",
]
SARCASM = {
    "-": [
        "A {n} {k}, if you enjoy watching paint dry.",
        "Oh, {n}, said nobody on the way out.",
        "Just {n}. I have already asked for my money back.",
        "So {n} that I counted the tiles of the ceiling.",
    ],
    "+": [
        "A {n} {k}, if you cannot stand happiness.",
        "Oh, {n}, said only my jealous rival.",
        "Just {n}. I have already booked two more evenings.",
        "So {n} that I told everybody to go at once.",
    ],
}
NEUTRAL = [
    "We went on a {day} with my {who}.",
    "It was {day}, and it rained in {city}.",
    "My {who} had read about it in a paper from {city}.",
    "I paid for two and took the train home.",
    "The {k} came to {city} in {month}.",
    "There were about {number} of us that evening.",
    "My {who} chose the {k}, as on every {day}.",
    "It took {number} minutes from beginning to end.",
    "The {a} was what people on the stairs talked about.",
    "I had last been in {city} in {month}.",
]
FILLERS = {
    "who": PEOPLE,
    "day": ["Monday", "Tuesday", "Thursday", "Friday", "Sunday"],
    "city": ["Lyon", "Oslo", "Vienna", "Porto", "Leeds", "Turin", "Ghent"],
    "month": ["January", "March", "May", "June", "October", "November"],
    "number": ["twenty", "forty", "fifty", "ninety", "a hundred"],
}
# How often each construction decides a text.
SHARES = {"direct": 56, "negation": 16, "contrast": 16, "rejected": 5, "expected": 5, "sarcasm": 2}


def sentence(rng: random.Random, template: str, label: str, kind: str) -> str:
    """`template` with its places filled, one by one, so that a second {p} is drawn anew."""
    choices = {
        "p": WORDS[label],
        "n": WORDS[OTHER[label]],
        "a": KINDS[kind],
        "k": [kind],
        **FILLERS,
    }
    while "{" in template:
        name = template[template.index("{") + 1 : template.index("}")]
        template = template.replace(f"{{{name}}}", rng.choice(choices[name]), 1)
    return template


def review(rng: random.Random, label: str) -> str:
    """One text of 1 to 6 sentences: what decides the label, among sentences that do not."""
    kind = rng.choice(list(KINDS))
    how = rng.choices(list(SHARES), SHARES.values())[0]
    hard = {"negation": NEGATION, "contrast": CONTRAST, "rejected": REJECTED}
    hard |= {"expected": EXPECTED, "sarcasm": SARCASM[label]}
    if how == "direct":
        templates = rng.sample(DIRECT, rng.choice([1, 2, 2, 3]))
    else:
        templates = [rng.choice(hard[how])]
    templates += rng.sample(NEUTRAL, rng.choice([0, 1, 1, 2, 2, 3, 4]))
    rng.shuffle(templates)
    return " ".join(sentence(rng, template, label, kind) for template in templates)


def make_corpus() -> None:
    """No text stands twice, in one part or in two; labels alternate, so classes are balanced."""
    rng, seen = random.Random(20261122), set()
    for part, size in SIZES.items():
        rows = []
        while len(rows) < size:
            label = "+-"[len(rows) % 2]
            text = review(rng, label)
            if len(text.split()) >= 6 and text.lower() not in seen:
                seen.add(text.lower())
                rows.append((text, {"+": "positive", "-": "negative"}[label]))
        rng.shuffle(rows)
        if part == "unlabelled":
            (HERE / "unlabelled.txt").write_text("".join(f"{text}\n" for text, _ in rows))
            continue
        (HERE / "corpus").mkdir(exist_ok=True)
        with (HERE / "corpus" / f"{part}.csv").open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("text", "label"), *rows])


# ---------------------------------------------------------------- the model

MAX_LENGTH, VOCABULARY = 80, 700
EPOCHS, BATCH_SIZE, LEARNING_RATE, MASKED_SHARE = 6, 32, 2e-3, 0.2


def make_tokenizer(texts: list[str]):
    """Lower-casing word pieces learnt from the unlabelled texts; [CLS] text [SEP], and a pair as
    [CLS] text [SEP] text [SEP]."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    pair = "[CLS] $A [SEP] $B:1 [SEP]:1"
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", pair, ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
        **{f"{token[1:-1].lower()}_token": token for token in special},
    )


def make_model() -> None:
    """Masked words (Devlin et al. 2019) on the unlabelled part, in a plain loop."""
    import torch
    from transformers import (
        DataCollatorForLanguageModeling,
        DistilBertConfig,
        DistilBertForMaskedLM,
    )

    torch.manual_seed(0)
    torch.set_num_threads(1)
    texts = (HERE / "unlabelled.txt").read_text().splitlines()
    tokenizer = make_tokenizer(texts)
    assert max(len(ids) for ids in tokenizer(texts)["input_ids"]) <= MAX_LENGTH
    sizes = {
        "dim": 96,
        "hidden_dim": 256,
        "n_layers": 3,
        "n_heads": 4,
        "vocab_size": len(tokenizer),
    }
    config = DistilBertConfig(**sizes, max_position_embeddings=MAX_LENGTH, attention_dropout=0.0)
    config.initializer_range = 0.05
    model = DistilBertForMaskedLM(config)
    rows = [{"input_ids": ids} for ids in tokenizer(texts)["input_ids"]]
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASKED_SHARE)
    steps = EPOCHS * -(-len(rows) // BATCH_SIZE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps, pct_start=0.1)
    for epoch in range(EPOCHS):
        losses = []
        # Neighbours in length share a batch, or a third of the work would be padding.
        order = sorted(
            range(len(rows)), key=lambda row: len(rows[row]["input_ids"]) + torch.rand(())
        )
        batches = [order[i : i + BATCH_SIZE] for i in range(0, len(order), BATCH_SIZE)]
        for index in torch.randperm(len(batches)):
            loss = model(**collate([rows[row] for row in batches[index]])).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        print(
            f"epoch {epoch + 1}/{EPOCHS}: masked-word loss {torch.stack(losses).mean():.3f}",
            flush=True,
        )
    model.save_pretrained(HERE / "model")
    tokenizer.save_pretrained(HERE / "model")


if __name__ == "__main__":
    {"corpus": make_corpus, "model": make_model}[sys.argv[1]]()
