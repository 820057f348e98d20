"""The names that published configs have had for a key."""

from collections.abc import Iterable


def _groups(*groups: str) -> Iterable[tuple[str, tuple[str, ...]]]:
    for group in groups:
        keys = group.split()
        for key in keys:
            yield key, tuple(other for other in keys if other != key)


SPELLINGS: dict[str, tuple[str, ...]] = dict(
    _groups(
        "hidden_size n_embd n_embed d_model dim",
        "num_hidden_layers n_layer n_layers num_layers",
        "num_attention_heads n_head n_heads",
        "num_kv_heads n_head_kv",
        "max_position_embeddings n_positions max_seq_len n_ctx",
        "num_experts num_local_experts n_routed_experts",
        "dtype torch_dtype",
        "rope_theta rotary_emb_base rope_embedding_base",
        "partial_rotary_factor rotary_pct rope_pct rope_percent rotary_emb_fraction",
        "rope_type type",
    )
)
"""Other names that published configs have had for a key: older ones, and those of transformers' attribute maps."""
