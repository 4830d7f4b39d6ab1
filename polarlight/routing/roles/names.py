"""The words that models use, all in lower case. Consulted where types and positions say nothing."""

from collections.abc import Mapping

from polarlight.routing.roles.vocabulary import Part
from polarlight.routing.roles.wrappers import plain_name


def _split_words(text: str) -> tuple[str, ...]:
    """Return the words of a text, split at whitespace, as a tuple."""
    return tuple(text.split())


EMBEDDINGS = _split_words(
    "embed embedding embeddings embed_tokens tok_embeddings word_embeddings shared wte wpe "
    "token_embedding word_embedding token_emb tok_emb word_emb embed_in embed_positions lut"
)
EMBEDDING_ENDINGS = _split_words("_embeddings _embedding _embed")
"""Endings of words for embedding tables, where the word does not mean an output layer."""

HEADS = _split_words(
    "head heads output score classifiers proj_out conv_out final_layer head_dist out_layer "
    "lm_heads logits class_embed bbox_embed last_linear outc regressor regression_layer"
)
"""Words for output layers; so are those that begin with `aux` or end in one of `HEAD_ENDINGS`."""

HEAD_ENDINGS = _split_words("_head _heads _classifier _classifiers _logits _predictor _pred _score")
"""Endings of words for output layers: `mlp_head`, `distillation_classifier`, `bbox_pred`."""

NO_HEADS = _split_words("conv_head pre_classifier pre_logits")
"""Words with such an ending for layers before the last one."""

ONLY_HEADS = _split_words(
    "lm_head unembed embed_out classifier qa_outputs seq_relationship classification_head "
    "shared_head"
)
"""Words that mean an output layer even inside of a numbered layer."""

MODULATIONS = _split_words("adaln ada_ln ada_norm ada_lin modulation norm_out")
"""First letters of layers that compute shifts, scales and gates from a condition (adaptive norms).

So do `mod` and words that end in `_mod`.
"""

NO_MATRICES = _split_words("token latent queries prompt a_log scale_shift_table gamma scale")
"""Parts of names of raw parameters whose rows are learned inputs, decays or factors."""

ROUTERS = _split_words("gate gates gating wg gate_network gating_network")
"""Words for routers beside experts; so are all that contain `router`."""

ATTENTION = {
    Part.QUERY: _split_words(
        "q q_proj query wq to_q q_lin query_proj q_attn q_b_proj linear_q project_q"
    ),
    Part.KEY: _split_words("k k_proj key wk to_k k_lin key_proj linear_k project_k"),
    Part.VALUE: _split_words("v v_proj value wv to_v v_lin value_proj linear_v project_v"),
    Part.OUTPUT: _split_words(
        "o o_proj out_proj wo to_out out_lin linear_out attention_out dense c_proj proj output"
    ),
    Part.QKV: _split_words(
        "qkv qkv_proj c_attn wqkv query_key_value kv_b_proj kv_proj to_kv to_qkv in_proj_qkvz "
        "in_proj_qkv qkv_linear"
    ),
    Part.LATENT: _split_words("q_a_proj kv_a_proj_with_mqa kv_a_proj"),
}
"""Projections of attention, by the last word of the module's name."""

ALONE_ATTENTION = _split_words(
    "q_proj k_proj v_proj o_proj qkv qkv_proj c_attn wqkv query_key_value wq wk wv query key value"
)
"""Words that mean attention outside of an attention block too."""

MLP = {
    Part.GATE: _split_words("gate_proj w1 gate wi_0"),
    Part.UP: _split_words(
        "up_proj w3 v1 wi_1 wi up c_fc fc fc1 fc_in ffn lin1 linear1 dense_h_to_4h pwconv1"
    ),
    Part.GATE_UP: _split_words("gate_up_proj input_linear gate_up w12 w13"),
    Part.DOWN: _split_words(
        "down_proj w2 wo down fc2 fc_out ffn_output lin2 linear2 dense_4h_to_h output_linear "
        "c_proj pwconv2"
    ),
}
"""Layers of an MLP, dense or expert, by the last word of the module's or parameter's name."""

PLAIN_MLP = _split_words("fc fc1 fc2 fc_in fc_out lin1 lin2 linear1 linear2 output_linear w1 w2 w3")
"""Those of these words that also name any layer of a plain network."""

MLP_BLOCKS = _split_words(
    "mlp ffn ff feed_forward feedforward intermediate densereludense mlps shared_expert "
    "shared_experts shared_mlp block_sparse_moe moe"
)
"""Words in a path that mean an MLP."""


def part_of(word: str, table: Mapping[Part, tuple[str, ...]]) -> Part:
    """Return the part in whose tuple of words `word` is; `Part.NONE` if in none."""
    return next((part for part, words in table.items() if word in words), Part.NONE)


def block_and_half(name: str, matrix_index: int, matrix_count: int) -> tuple[str, str] | None:
    """Return (key that a gate and its up share, "gate" or "up") for one matrix; else None.

    The key is the parameter's name if it holds both, else the block's.

    Args:
        name: The parameter's name.
        matrix_index: Index of the matrix in the parameter's view.
        matrix_count: Number of matrices in the view; two are a gate and an up projection.
    """
    if matrix_count == 2:
        return name, ("gate", "up")[matrix_index]
    words = plain_name(name).split(".")
    place = -2 if words[-1] == "weight" and len(words) > 1 else -1
    block, word = ".".join(words[:place]), words[place].lower()
    halves = (("gate", Part.GATE), ("up", Part.UP))
    return next(((block, half) for half, kind in halves if word in MLP[kind]), None)
