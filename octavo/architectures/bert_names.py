"""Where the tensors of BERT go, and of the encoders that are built alike."""

from octavo.parts import Into, Names, parameter

POOLER = tuple(f"bert.pooler.dense.{name}" for name in ("weight", "bias"))


def norms(table: dict[str, str]) -> dict[str, str | Into]:
    """Entries of norms, which the first checkpoints call gamma and beta."""
    old = {
        f"{name}.{was}": parameter(f"{path}.{now}")
        for name, path in table.items()
        for was, now in (("gamma", "weight"), ("beta", "bias"))
    }
    return {**old, **table}


LAYERS: dict[str, str | Into] = {
    **norms(
        {
            "bert.encoder.layer.{i}.attention.output.LayerNorm": "layers.{i}.attn_norm",
            "bert.encoder.layer.{i}.output.LayerNorm": "layers.{i}.mlp_norm",
        }
    ),
    "bert.encoder.layer.{i}.attention.self.{query|key|value}": "layers.{i}.attn.qkv.{q|k|v}",
    "bert.encoder.layer.{i}.attention.output.dense": "layers.{i}.attn.o",
    "bert.encoder.layer.{i}.intermediate.dense": "layers.{i}.mlp.up",
    "bert.encoder.layer.{i}.output.dense": "layers.{i}.mlp.down",
}
EMBEDDINGS: dict[str, str | Into] = {
    "bert.embeddings.word_embeddings": "embed.tokens",
    "bert.embeddings.position_embeddings": "embed.positions",
    "bert.embeddings.token_type_embeddings": "embed.types",
    "bert.embeddings_project": "embed.project",
    **norms({"bert.embeddings.LayerNorm": "embed.norm"}),
}
HEADS = (
    "cls.predictions.bias",
    *(f"cls.predictions.{part}.{name}" for part in ("transform.dense", "decoder") for name in ("weight", "bias")),
    *(f"cls.predictions.transform.LayerNorm.{name}" for name in ("weight", "bias", "gamma", "beta")),
    *(f"cls.seq_relationship.{name}" for name in ("weight", "bias")),
    *(f"lm_head.{name}" for name in ("bias", "decoder.weight", "decoder.bias")),
    *(f"lm_head.{part}.{name}" for part in ("dense", "layer_norm") for name in ("weight", "bias")),
)
"""Heads that fill in words, which embeddings do without."""
BUFFERS = ("bert.embeddings.position_ids", "bert.embeddings.token_type_ids")


def names(prefix: str = "bert.", *, has_pooler: bool = False) -> Names:
    """The names of a checkpoint in which they begin with `prefix`, or without it; `has_pooler`: which is used."""
    table = Names({**EMBEDDINGS, **LAYERS}, (*BUFFERS, *HEADS, *(() if has_pooler else POOLER)))
    own = table.renamed("bert.", prefix)
    return Names(own.table, own.ignored, prefix)
