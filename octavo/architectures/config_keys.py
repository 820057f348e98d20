"""config.json's keys: each one's kind."""

from octavo.architectures.config_kinds import (
    ACTIVATION,
    BASE,
    COUNT,
    COUNT_OR_NONE,
    EPSILON,
    FACTOR,
    FACTORS,
    FLAG,
    GRIDS,
    INDICES,
    KINDS,
    LAYERS,
    LENGTH,
    LIMITS,
    MAX_COUNT,
    MAX_SIZE,
    OBJECT,
    OBJECTS,
    SCALE,
    SHARE,
    SIZE,
    TEXT,
    TOKEN,
    TOKENS,
    VERSION,
    WINDOW,
    Kind,
    either,
    integer,
    integers,
    numbered,
    numbers,
    one_of,
)

_BY_KIND: dict[Kind, str] = {
    LAYERS: "num_hidden_layers image_num_layers n_layer n_layers num_layers decoder_layers encoder_layers layers depth"
    " num_global_layers num_decoder_layers",
    COUNT: """medusa_num_heads num_expert_group linear_num_heads num_global_key_value_heads top_k_experts
        relative_attention_num_buckets relative_attention_max_distance moe_k moe_layer_interval num_attention_heads
        num_res_blocks image_num_heads scale_factor attention_heads max_num_tiles n_head n_heads num_key_value_heads
        num_kv_heads n_head_kv multi_query_group_num encoder_attention_heads decoder_attention_heads kv_n_heads
        n_heads_in_group num_labels moe_layer_freq moe_layer_frequency decoder_sparse_step expert_layer_period
        attn_layer_period n_group topk_group moe_top_k moe_num_experts no_rope_layer_interval num_heads heads
        mamba_n_heads mamba_num_heads n_mamba_heads mamba_n_groups mamba_ngroups n_groups num_mem_blocks
        linear_num_key_heads linear_num_value_heads full_attention_interval cross_attention_frequency
        spatial_pool_stride spatial_merge_size tokens_per_second temporal_patch_size stack_factor conv_groups
        index_n_heads hc_mult hc_sinkhorn_iters o_groups compress_rate_csa compress_rate_hca altup_num_inputs""",
    COUNT_OR_NONE: """medusa_num_layers global_attn_every_n_layers num_shared_experts moe_num_shared_experts
        moe_layer_start_index num_dense_layers num_experts num_local_experts n_routed_experts n_shared_experts
        num_experts_per_tok num_experts_per_token first_k_dense_replace max_window_layers expert_layer_offset
        num_nextn_predict_layers attn_layer_offset dense_attention_every_n_layers type_vocab_size conv_kernel_size
        num_hash_layers interleave_moe_layer_step altup_active_idx""",
    integer(-1, MAX_COUNT): "moe_layer_end_index",
    integer(0, MAX_SIZE): "shared_intermediate_size index_topk_freq index_skip_topk_offset",
    either(COUNT, integers(1, MAX_COUNT)): "moe_topk",
    either(COUNT_OR_NONE, TEXT): "sliding_window_pattern",
    integer(1, 2): "num_ln_in_parallel_attn",
    SIZE: """global_head_dim vocab_size_per_layer_input d_ff d_kv decoder_vocab_size dim hidden_dim hidden_size
        num_embeddings latent_channels resolution base_channels embedding_size image_patch_size image_emb_dim
        image_mlp_dim vision_output_dim n_embd n_embed d_model intermediate_size n_inner ffn_dim encoder_ffn_dim
        decoder_ffn_dim ffn_hidden_size ff_intermediate_size moe_intermediate_size shared_expert_intermediate_size
        head_dim kv_channels vocab_size padded_vocab_size word_embed_proj_dim draft_vocab_size truncated_vocab_size
        kv_lora_rank q_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim state_size mamba_d_state rotary_dim
        blocksparse_block_size blocksparse_num_local_blocks blocksparse_vert_stride image_size patch_size in_channels
        num_positions num_query_tokens encoder_hidden_size num_channels query_num n_queries output_dim width embed_dim
        num_mel_bins max_source_positions block_ff_dim block_multiple_of mamba_d_ssm mamba_head_dim mamba_headdim
        ssm_state_size adapter_rank lru_width attention_window_size moe_shared_expert_intermediate_size moe_latent_size
        linear_key_head_dim linear_value_head_dim linear_head_dim pooler_hidden_size attention_head_size index_head_dim
        index_topk o_lora_rank intermediate_size_mlp laurel_rank window_size""",
    integer(2, 1 << 12): "conv_kernel mamba_d_conv conv_L_cache conv1d_width linear_conv_kernel_dim"
    " short_conv_kernel_size",
    LENGTH: """max_target_positions max_position_embeddings n_positions max_seq_len n_ctx seq_length model_max_length
        max_sequence_length original_max_position_embeddings""",
    WINDOW: "attention_chunk_size sliding_window_size local_attention sliding_window window_length",
    TOKEN: "image_token_id video_token_id audio_token_id decoder_start_token_id pad_token_id bos_token_id",
    TOKENS: "eos_token_id",
    FLAG: """share_encoder_decoder_embeddings scale_attn_by_inverse_layer_idx apply_residual_connection_post_layernorm
        is_original_qwen3_reranker alibi new_decoder_architecture multimodal_projector_bias use_shared_attention_adapter
        indexer_rope_interleave qkv_proj_bias _remove_final_layer_norm block_auto_adjust_ff_dim with_learnable_separator
        use_double_wide_mlp rotary_emb_interleaved drop_vision_last_layer mamba_norm_before_gate linear_allow_neg_eigval
        scale_decoder_outputs multi_query_attention parallel_attn_mlp_res use_parallel_residual mup_scale_qk_dot_by_d
        norm_before_residual use_aux_hidden_state linear_heads_in_turn logn_attention_scale causal position_biased_input
        route_norm tie_word_embeddings do_layer_norm_before replace_with_linear attention_layer_norm altup_correct_scale
        attention_out_bias mrope_interleaved use_sliding_window scale_attn_weights scale_qk_dot_by_d relative_attention
        linear_qkv_apart attention_k_eq_v enable_moe_block use_routing_bias projector_ln_mid qk_normalization norm_after
        medusa_fc_bias classifier_bias add_bias_linear mamba_proj_bias mamba_conv_bias use_long_context use_hd_transform
        moe_renormalize scale_embedding mup_use_scaling post_layer_norm learned_pos_emb use_expert_bias projectors_bias
        parallel_block attention_bias mlp_bias use_conv_bias parallel_attn norm_topk_prob mamba_rms_norm rope_interleave
        use_rms_norm mlp_fc1_bias mlp_fc2_bias bias use_qkv_bias tie_embedding double_latent share_att_key is_matryoshka
        norm_bias mup_enabled lm_head_bias enable_bias add_qkv_bias qk_layernorm adapter_bias weight_tying use_mem_rope
        prenorm qk_norm use_cla use_bias qkv_bias no_bias multi_query use_qk_norm rmsnorm truncate swin_norm conv_bias
        qk_ln no_op
        original_lm_head layer_norm_elementwise_affine blocksparse_homo_head_pattern use_decoder_only_language_model""",
    TEXT: """mtp_hybrid_override_pattern classifier_pooling feed_forward_proj hybrid_override_pattern scoring_func
        score_func qk_norm_type model_type problem_type sbert_ce_default_activation_function layer_norm_type
        hd_transform_order position_embedding_type topk_method attn_type rope_type type dtype torch_dtype vision_encoder
        norm_rel_ebd""",
    ACTIVATION: """classifier_activation mlp_hidden_act mamba_hidden_act name image_mlp_activations hidden_act
        hidden_activation activation_function activation projector_hidden_act pooler_hidden_act conv_act""",
    EPSILON: """time_step_min hc_eps moe_norm_min image_norm_eps rms_norm_eps layer_norm_eps layer_norm_epsilon
        layernorm_epsilon norm_epsilon mixer_rms_eps router_jitter_noise""",
    SCALE: """linear_attn_alpha_factor attention_out_multiplier mup_embedding_multiplier moe_normalize_expert_weights
        llama_4_scaling_beta attention_value_scale router_scaling_factor attention_multiplier routed_scaling_factor
        route_scale ssm_out_multiplier residual_multiplier embedding_multiplier mup_attn_multiplier mup_embeddings_scale
        mlp_alpha_factor ssm_in_multiplier lm_head_multiplier embeddings_scale mup_output_alpha hidden_act_param mscale
        key_multiplier scale_emb scale_depth mup_width_scale width_scale softmax_scale mscale_all_dim attn_scale
        full_attn_alpha_factor full_attn_beta_factor linear_attn_beta_factor mlp_beta_factor attention_in_multiplier""",
    FACTOR: """norm_eps alpha logits_soft_cap swiglu_limit swiglu_alpha logits_scaling dim_model_base
        mup_width_multiplier rope_position_scale rope_ratio clip_qkv gegelu_limit attn_logit_softcapping
        final_logit_softcapping query_pre_attn_scalar alibi_bias_max expand mamba_expand expansion_ratio ffn_mult
        block_ffn_dim_multiplier factor low_freq_factor high_freq_factor beta_fast beta_slow attention_factor
        attn_factor short_mscale long_mscale scaling_factor mlp_ratio floor_scale""",
    BASE: """compress_rope_theta global_rope_theta local_rope_theta rope_theta rotary_emb_base rope_embedding_base
        rope_local_base_freq base""",
    SHARE: "downsample_ratio partial_rotary_factor rotary_pct rope_pct rope_percent rotary_emb_fraction",
    OBJECT: """eagle_config compress_rates per_layer_config sentence_transformers rope_scaling rope_parameters
        attn_config ffn_config ffn_act_fn rotary id2label attention ffn text_config llm_config vision_config
        qformer_config visual slice_config moe audio_config embd_layer linear_attn_config img_processor vision_backbone
        vq_config vocabulary_map""",
    OBJECTS: "block_configs",
    INDICES: """eagle_aux_hidden_state_layer_ids full_attn_idxs full_attn_layers attn_layer_indices hybrid_layer_ids
        cross_attention_layers intermediate_layers_indices attention_layers expert_layers mlp_only_layers bskcn_1
        bskcn_2 bskcn_3 bskcn_4 moe_layers fullatt_block_indexes deepstack_visual_indexes""",
    GRIDS: "supported_aspect_ratios",
    integers(0, MAX_COUNT): "compress_ratios",
    integers(0, MAX_SIZE): "dummy_token_indices image_default_input_size classifier_token_ids",
    integers(1, MAX_COUNT): "num_key_value_heads_per_layer mrope_section channel_multiplier attn_resolutions"
    " matryoshka_dimensions",
    numbers(-1e6, 1e6, count=2): "bskcn_tv",
    LIMITS: "time_step_limit",
    numbers(-1e6, 1e6): "ssm_multipliers mlp_multipliers",
    FACTORS: "short_factor long_factor factors",
    KINDS: """mtp_layers_block_type layer_types mlp_layer_types layers_block_type block_types architectures
        classifier_from_token""",
    integers(0, 1): "no_rope_layers",
    numbers(0.0, 0.999999): "activation_sparsity_pattern",
    either(FLAG, COUNT_OR_NONE): "attn_temperature_tuning",  # a number in Llama 4's first configs
    integer(-1, 1 << 16): "max_relative_positions position_buckets",
    either(TEXT, KINDS): "index_topk_pattern indexer_types pos_att_type",
    VERSION: "version",
    either(integer(-1000, 1000), integers(-1000, 1000)): "vision_feature_layer",
    one_of("default", "full"): "vision_feature_select_strategy",
    either(ACTIVATION, one_of("swiglu")): "projector_act",
    one_of("average", "max"): "spatial_pool_mode",
    one_of("rms_norm", "layer_norm"): "norm_type",
    integer(0, MAX_SIZE): "hidden_size_per_layer_input num_kv_shared_layers",
    either(FLAG, one_of("all", "vision")): "use_bidirectional_attention",
    one_of("v1", "v2"): "ps_version",
    integer(-1000, 1000): "select_layer layer_idx",
    numbered("anyres_max_"): "vision_aspect_ratio",
    either(SCALE, one_of("inv_sqrt_d_model")): "logit_scale",
    either(SIZE, one_of("auto")): "mamba_d_head time_step_rank mamba_dt_rank",
}
KEYS: dict[str, Kind] = {key: kind for kind, keys in _BY_KIND.items() for key in keys.split()}
"""The kind of every key that a family reads."""
