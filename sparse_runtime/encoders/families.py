"""The encoder families that run. A new one is one more entry here (docs/encoders.md)."""

from __future__ import annotations

from .architecture import HIDDEN_ACT, Architecture, HeadNames, LayerNames, Step, Table

SEQUENCE, TOKEN, QUESTION, MASKED = (
    "sequence_classification",
    "token_classification",
    "question_answering",
    "masked_lm",
)

_BERT_TABLES: tuple[tuple[Table, str], ...] = (
    ("word", "embeddings.word_embeddings"),
    ("token_type", "embeddings.token_type_embeddings"),
    ("position", "embeddings.position_embeddings"),
)
_BERT_LAYER = LayerNames(
    qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
    attention_out="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    ffn_in="intermediate.dense",
    ffn_out="output.dense",
    ffn_norm="output.LayerNorm",
)
_POOLER = Step("pooler.dense", "hidden", "tanh", in_base=True)
_LABELS = Step("classifier", "labels")
# Heads of one linear layer, and the classifier that reads the first token through two.
_COMMON = {
    TOKEN: HeadNames("tokens", (_LABELS,)),
    QUESTION: HeadNames("tokens", (Step("qa_outputs", "labels"),)),
}


def _two_layers(activation: str) -> HeadNames:
    dense = Step("classifier.dense", "hidden", activation)
    return HeadNames("first", (dense, Step("classifier.out_proj", "labels")))


_LM_HEAD = HeadNames(
    "tokens",
    (
        Step("lm_head.dense", "hidden", "gelu", norm="lm_head.layer_norm"),
        Step("lm_head.decoder", "vocab", tied=True, bias="lm_head.bias"),
    ),
)

BERT = Architecture(
    model_types=("bert",),
    class_names=("Bert",),
    prefix="bert.",
    tables=_BERT_TABLES,
    embedding_norm="embeddings.LayerNorm",
    stack="encoder.layer",
    layer=_BERT_LAYER,
    pooler=_POOLER,
    heads={
        **_COMMON,
        SEQUENCE: HeadNames("first", (_POOLER, _LABELS)),
        MASKED: HeadNames(
            "tokens",
            (
                Step(
                    "cls.predictions.transform.dense",
                    "hidden",
                    HIDDEN_ACT,
                    norm="cls.predictions.transform.LayerNorm",
                ),
                Step("cls.predictions.decoder", "vocab", tied=True, bias="cls.predictions.bias"),
            ),
        ),
    },
    ignored=("cls.", "classifier.", "qa_outputs.", "pooler."),
)

ROBERTA = Architecture(
    model_types=("roberta", "xlm-roberta", "camembert"),
    class_names=("Roberta", "XLMRoberta", "Camembert"),
    prefix="roberta.",
    tables=_BERT_TABLES,
    embedding_norm="embeddings.LayerNorm",
    stack="encoder.layer",
    layer=_BERT_LAYER,
    pooler=_POOLER,
    heads={**_COMMON, SEQUENCE: _two_layers("tanh"), MASKED: _LM_HEAD},
    positions="after_padding",
    ignored=("lm_head.", "classifier.", "qa_outputs.", "pooler."),
)

DISTILBERT = Architecture(
    model_types=("distilbert",),
    class_names=("DistilBert",),
    prefix="distilbert.",
    tables=(
        ("word", "embeddings.word_embeddings"),
        ("position", "embeddings.position_embeddings"),
    ),
    embedding_norm="embeddings.LayerNorm",
    stack="transformer.layer",
    layer=LayerNames(
        qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        attention_out="attention.out_lin",
        attention_norm="sa_layer_norm",
        ffn_in="ffn.lin1",
        ffn_out="ffn.lin2",
        ffn_norm="output_layer_norm",
    ),
    heads={
        **_COMMON,
        SEQUENCE: HeadNames("first", (Step("pre_classifier", "hidden", "relu"), _LABELS)),
        MASKED: HeadNames(
            "tokens",
            (
                Step("vocab_transform", "hidden", HIDDEN_ACT, norm="vocab_layer_norm"),
                Step("vocab_projector", "vocab", tied=True),
            ),
        ),
    },
    norm_eps=1e-12,
    intermediate_key="hidden_dim",
    activation_key="activation",
    ignored=("vocab_", "pre_classifier.", "classifier.", "qa_outputs."),
)

ELECTRA = Architecture(
    model_types=("electra",),
    class_names=("Electra",),
    prefix="electra.",
    tables=_BERT_TABLES,
    embedding_norm="embeddings.LayerNorm",
    projection="embeddings_project",
    stack="encoder.layer",
    layer=_BERT_LAYER,
    heads={
        **_COMMON,
        SEQUENCE: _two_layers("gelu"),
        MASKED: HeadNames(
            "tokens",
            (
                Step(
                    "generator_predictions.dense",
                    "embedding",
                    "gelu",
                    norm="generator_predictions.LayerNorm",
                ),
                Step("generator_lm_head", "vocab", tied=True),
            ),
        ),
    },
    ignored=("discriminator_predictions.", "generator_", "classifier.", "qa_outputs."),
)

MPNET = Architecture(
    model_types=("mpnet",),
    class_names=("MPNet",),
    prefix="mpnet.",
    tables=(
        ("word", "embeddings.word_embeddings"),
        ("position", "embeddings.position_embeddings"),
    ),
    embedding_norm="embeddings.LayerNorm",
    stack="encoder.layer",
    layer=LayerNames(
        qkv=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
        attention_out="attention.attn.o",
        attention_norm="attention.LayerNorm",
        ffn_in="intermediate.dense",
        ffn_out="output.dense",
        ffn_norm="output.LayerNorm",
    ),
    pooler=_POOLER,
    heads={**_COMMON, SEQUENCE: _two_layers("tanh"), MASKED: _LM_HEAD},
    positions="after_padding",
    padding_id=1,
    relative_bias="encoder.relative_attention_bias",
    ignored=("lm_head.", "classifier.", "qa_outputs.", "pooler."),
)

FAMILIES: dict[str, Architecture] = {
    model_type: family
    for family in (BERT, ROBERTA, DISTILBERT, ELECTRA, MPNET)
    for model_type in family.model_types
}
