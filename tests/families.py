"""A tiny random model of every family of text classifiers that transformers has, and what is done
with it: trained on texts of which some have the end token inside, and asked for predictions.

The sizes are those that a family's configuration has by name; what a family needs besides is in
`OWN`.
"""

from pathlib import Path

import torch
from conftest import WORDS, make_rows, train_small, write_csv
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS,
)

import eval as evaluation
from config import EvalConfig

FAMILIES = sorted(CLASSIFIERS)
SPECIAL = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}
VOCABULARY = [*SPECIAL.values(), *WORDS, *"w0123456789\u0120"]
POSITIONS = 66  # of which RoBERTa and its kin use 64

SIZES = {
    **dict.fromkeys(["hidden_size", "dim", "d_model", "n_embd", "emb_dim", "embedding_size"], 32),
    **dict.fromkeys(["intermediate_size", "hidden_dim", "d_ff", "d_inner", "dff", "n_inner"], 64),
    **dict.fromkeys(["encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim", "ffn_hidden_size"], 64),
    **dict.fromkeys(["num_hidden_layers", "n_layers", "n_layer", "num_layers"], 2),
    **dict.fromkeys(["encoder_layers", "decoder_layers", "num_decoder_layers"], 2),
    **dict.fromkeys(["num_attention_heads", "n_heads", "n_head", "num_heads"], 2),
    **dict.fromkeys(["encoder_attention_heads", "decoder_attention_heads"], 2),
    **dict.fromkeys(["num_key_value_heads", "num_kv_heads"], 2),
    **dict.fromkeys(["head_dim", "d_kv", "d_head", "attention_head_size", "v_head_dim"], 16),
    **dict.fromkeys(["max_position_embeddings", "n_positions", "max_seq_len"], POSITIONS),
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts"], 4),
    **dict.fromkeys(["num_experts_per_tok", "moe_top_k"], 2),
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size"], 32),
    **dict.fromkeys(["q_lora_rank", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim"], 16),
    **dict.fromkeys(["n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"], 1),
    "query_pre_attn_scalar": 16,
    "sliding_window": 16,
    "vocab_size": len(VOCABULARY),
}
# What a family's sizes must be besides, to fit each other or to be small.
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    **dict.fromkeys(["linear_num_key_heads", "linear_num_value_heads"], 2),
    **dict.fromkeys(["linear_key_head_dim", "linear_value_head_dim"], 16),
}
ROPE = {"rope_theta": 1e4, "rope_type": "default"}
LLAMA_4 = {**ROPE, "original_max_position_embeddings": 66, "llama_4_scaling_beta": 0.1}
KINDS = ["linear_attention", "hybrid"]
MAMBA = {
    "num_hidden_layers": 2,
    "layers_block_type": KINDS,
    **dict.fromkeys(["mamba_d_state", "mamba_dt_rank", "adapter_rank"], 4),
    "attention_hidden_size": 64,
    "attention_head_dim": 32,
}
OWN: dict[str, dict] = {
    "canine": {"num_hash_buckets": 64},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            kind: {**ROPE, "mrope_section": [4, 2, 2]}
            for kind in ("sliding_attention", "full_attention")
        },
    },
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "esm": {"pad_token_id": 1, "mask_token_id": 4},
    "funnel": {"block_sizes": [1, 1], "block_repeats": [1, 1]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4},
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4},
    "lilt": {"hidden_size": 48},
    "longformer": {"attention_window": [8, 8]},
    "luke": {"entity_vocab_size": 10, "entity_emb_size": 16},
    "markuplm": {"max_depth": 4, "xpath_unit_hidden_size": 4},
    "mistral4": {"qk_head_dim": 32, "rope_parameters": LLAMA_4},
    "mobilebert": {"embedding_size": 32, "true_hidden_size": 32, "intra_bottleneck_size": 32},
    "perceiver": {"d_latents": 32, "num_latents": 8, "num_self_attends_per_block": 1},
    "qwen3_5": {"text_config": LINEAR},
    "qwen3_5_text": LINEAR,
    "qwen3_next": LINEAR,
    "reformer": {
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [16, 16],
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "attn_layers": ["local", "lsh"],
    },
    "roc_bert": {"pronunciation_vocab_size": 20, "shape_vocab_size": 20, "shape_embed_dim": 32},
    "t5": {"decoder_start_token_id": 1},  # as every T5 on the Hub has
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        **MAMBA,
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
    },
    "zamba2": {**MAMBA, "mamba_headdim": 16, "n_mamba_heads": 4},
}


def make_tokenizer(folder: Path, **options) -> None:
    """<s> words </s>. It states no length, unless `options` do.

    By byte pairs, because transformers takes every tokenizer of a Qwen2 for one of those.
    """
    vocabulary = {token: number for number, token in enumerate(VOCABULARY)}
    merges = [(word[:-1], word[-1]) for word in WORDS]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.BertProcessing(("</s>", 2), ("<s>", 0))
    special = {f"{name}_token": token for name, token in SPECIAL.items()}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, **options).save_pretrained(
        folder
    )


def tiny_config(kind: str, own: dict | None = None):
    config_class = CONFIG_MAPPING[kind]
    return shrink(config_class, OWN.get(kind, {}) if own is None else own)


def shrink(config_class, own: dict):
    """A configuration of that class with small sizes, in its parts too."""
    default = config_class()
    fields = default.to_dict()
    sizes = {name: size for name, size in SIZES.items() if name in fields}
    for name in ("pad", "bos", "eos"):  # a family without one, such as GPT-2, stays so
        if fields.get(f"{name}_token_id") is not None:
            sizes[f"{name}_token_id"] = list(SPECIAL).index(name)
    for name in getattr(config_class, "sub_configs", {}):
        part = getattr(default, name, None)
        if part is not None:
            sizes[name] = shrink(type(part), own.get(name, {})).to_dict()
    sizes |= {name: value for name, value in own.items() if name not in config_class.sub_configs}
    return config_class(**sizes)


def make_family(kind: str, folder: Path, **own) -> Path:
    """The encoder of a tiny model of that family, with a tokenizer, saved in `folder`."""
    make_tokenizer(folder)
    torch.manual_seed(0)
    config = tiny_config(kind, {**OWN.get(kind, {}), **own})
    try:
        model = AutoModel.from_config(config)
    except (ValueError, TypeError):  # it has no model without a head, or two
        model = AutoModelForSequenceClassification.from_config(config)
    except ImportError:  # LayoutLMv2 needs detectron2
        model = config
    model.save_pretrained(folder)
    return folder


TEXTS = [
    (text if number % 7 else f"{text} </s> w3", label)
    for number, (text, label) in enumerate(make_rows(60, seed=1))
]


def train_family(model: Path, output: Path, **flags) -> Path:
    """`output` of six steps with dropout; texts are cut at 32 tokens."""
    data = write_csv(output.parent / "texts.csv", TEXTS)
    few = {"max_steps": 6, "logging_steps": 2, "eval_steps": 4, "save_steps": 2}
    train_small(model=model, dataset=data, output_dir=output, **few | flags)
    return output


def logits_in_batches_of(size: int, best: Path) -> torch.Tensor:
    """(60, 2), by eval.py's classifier."""
    given = EvalConfig(ckpt=str(best), num_threads=1, per_device_eval_batch_size=size)
    classifier = evaluation.open_classifier(given)
    return classifier.logits(classifier.encode([(text,) for text, _ in TEXTS]))
