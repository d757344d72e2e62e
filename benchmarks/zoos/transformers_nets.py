"""Architectures of transformers in small configurations with random weights: vision, text, audio, and two at once.

Sizes within a net differ from one another wherever the architecture lets them, so that a compiler that goes by equal
numbers is found out. Dropout is as configured by default; what draws from numpy's random numbers (masking of spans in
audio nets) is off, as two runs of the same net could not be compared. ViLT draws from torch's also in eval mode.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoos import Inputs, Net, torchvision_shim

_VOCABULARY = 99
_LENGTH = 11
_LABELS = {"num_labels": 5}
_WIDTHS = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 80}
_PATCHES = {**_WIDTHS, "image_size": 32, "patch_size": 8}
_TEXT = {**_WIDTHS, "vocab_size": _VOCABULARY, "max_position_embeddings": 40}
_CAUSAL = {**_TEXT, "use_cache": False}
_GROUPED = {**_CAUSAL, "num_key_value_heads": 2}
_SPEECH = {
    **_WIDTHS,
    "conv_dim": (20, 24, 28),
    "conv_kernel": (10, 3, 2),
    "conv_stride": (5, 2, 2),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "apply_spec_augment": False,
    "vocab_size": 30,
}
_TEXT_TOWER = {**_TEXT, "hidden_size": 40, "intermediate_size": 72, "eos_token_id": 98}


def _pixels(side: int = 32, channels: int = 3) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, channels, side, side, generator=_seeded())}


def _video(frames: int = 4, side: int = 32) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, frames, 3, side, side, generator=_seeded())}


def _tokens() -> dict[str, Tensor]:
    """Two sentences of different lengths; identifiers from 3 on, as the first ones have meanings in some nets."""
    mask = torch.ones(2, _LENGTH, dtype=torch.int64)
    mask[1, -3:] = 0
    return {"input_ids": _identifiers(_LENGTH), "attention_mask": mask}


def _unpadded() -> dict[str, Tensor]:
    return {"input_ids": _identifiers(_LENGTH)}


def _pairs() -> dict[str, Tensor]:
    return {**_tokens(), "decoder_input_ids": _identifiers(7)}


def _waveform() -> dict[str, Tensor]:
    return {"input_values": torch.randn(2, 800, generator=_seeded())}


def _mel_channels_first() -> dict[str, Tensor]:
    return {"input_features": torch.randn(2, 20, 60, generator=_seeded())}


def _mel_and_tokens() -> dict[str, Tensor]:
    return {**_mel_channels_first(), "decoder_input_ids": _identifiers(7)}


def _spectrogram() -> dict[str, Tensor]:
    return {"input_values": torch.randn(2, 50, 30, generator=_seeded())}


def _speech_features() -> dict[str, Tensor]:
    features = torch.randn(2, 40, 20, generator=_seeded())
    return {"input_features": features, "decoder_input_ids": _identifiers(7)}


def _image_and_text() -> dict[str, Tensor]:
    return {**_tokens(), **_pixels()}


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _identifiers(length: int) -> Tensor:
    return torch.randint(3, _VOCABULARY - 1, (2, length), generator=_seeded())


@dataclass(frozen=True)
class Configuration:
    """A configuration: its model type, settings by name, and inputs; settings of towers are nested mappings."""

    family: str
    inputs: Callable[[], dict[str, Tensor]]
    settings: dict[str, Any] = field(default_factory=dict)


_VISION = {
    "ViTForImageClassification": Configuration("vit", _pixels, {**_PATCHES, **_LABELS}),
    "ViTModel/eager": Configuration("vit", _pixels, {**_PATCHES, "attn_implementation": "eager"}),
    "DeiTForImageClassificationWithTeacher": Configuration("deit", _pixels, {**_PATCHES, **_LABELS}),
    "BeitForImageClassification": Configuration(
        "beit", _pixels, {**_PATCHES, **_LABELS, "use_relative_position_bias": True}
    ),
    "Data2VecVisionForImageClassification": Configuration(
        "data2vec-vision", _pixels, {**_PATCHES, **_LABELS, "use_shared_relative_position_bias": True}
    ),
    "Dinov2ForImageClassification": Configuration(
        "dinov2",
        _pixels,
        {**_LABELS, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_ratio": 2}
        | {"image_size": 32, "patch_size": 8},
    ),
    "Dinov2Model/swiglu": Configuration(
        "dinov2",
        _pixels,
        {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_ratio": 2, "use_swiglu_ffn": True}
        | {"image_size": 32, "patch_size": 8},
    ),
    "SwinForImageClassification": Configuration(
        "swin",
        _pixels,
        {**_LABELS, "image_size": 32, "patch_size": 2, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4]}
        | {"window_size": 4, "mlp_ratio": 3.0},
    ),
    "Swinv2ForImageClassification": Configuration(
        "swinv2",
        _pixels,
        {**_LABELS, "image_size": 32, "patch_size": 2, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4]}
        | {"window_size": 4, "mlp_ratio": 3.0},
    ),
    "ConvNextForImageClassification": Configuration(
        "convnext", lambda: _pixels(48), {**_LABELS, "num_stages": 3, "hidden_sizes": [16, 24, 40], "depths": [1, 2, 1]}
    ),
    "ConvNextV2ForImageClassification": Configuration(
        "convnextv2",
        lambda: _pixels(48),
        {**_LABELS, "num_stages": 3, "hidden_sizes": [16, 24, 40], "depths": [1, 2, 1]},
    ),
    "MobileViTForImageClassification": Configuration(
        "mobilevit",
        lambda: _pixels(96),
        {**_LABELS, "image_size": 96, "hidden_sizes": [24, 32, 40], "neck_hidden_sizes": [8, 12, 16, 20, 28, 36, 64]},
    ),
    "MobileViTV2ForImageClassification": Configuration(
        "mobilevitv2",
        lambda: _pixels(96),
        {**_LABELS, "image_size": 96, "width_multiplier": 0.25, "n_attn_blocks": [1, 2, 1]},
    ),
    "MobileNetV1ForImageClassification": Configuration(
        "mobilenet_v1", lambda: _pixels(96), {**_LABELS, "image_size": 96, "depth_multiplier": 0.25}
    ),
    "MobileNetV2ForImageClassification": Configuration(
        "mobilenet_v2", lambda: _pixels(96), {**_LABELS, "image_size": 96, "depth_multiplier": 0.35}
    ),
    "ResNetForImageClassification": Configuration(
        "resnet",
        lambda: _pixels(48),
        {**_LABELS, "embedding_size": 12, "hidden_sizes": [16, 24, 40], "depths": [1, 2, 1]},
    ),
    "ResNetModel/basic": Configuration(
        "resnet",
        lambda: _pixels(48),
        {"embedding_size": 12, "hidden_sizes": [16, 24, 40], "depths": [1, 2, 1], "layer_type": "basic"},
    ),
    "RegNetForImageClassification": Configuration(
        "regnet",
        lambda: _pixels(64),
        {**_LABELS, "embedding_size": 12, "hidden_sizes": [16, 24, 32, 40], "depths": [1, 2, 1, 1]}
        | {"groups_width": 8, "layer_type": "y"},
    ),
    "EfficientNetForImageClassification": Configuration(
        "efficientnet",
        lambda: _pixels(64),
        {**_LABELS, "image_size": 64, "width_coefficient": 0.25, "depth_coefficient": 0.5, "hidden_dim": 320},
    ),
    "SegformerForSemanticSegmentation": Configuration(
        "segformer",
        lambda: _pixels(64),
        {**_LABELS, "num_encoder_blocks": 3, "depths": [1, 2, 1], "sr_ratios": [4, 2, 1]}
        | {"hidden_sizes": [16, 24, 40], "patch_sizes": [7, 3, 3], "strides": [4, 2, 2], "mlp_ratios": [4, 3, 2]}
        | {"num_attention_heads": [1, 2, 4], "decoder_hidden_size": 28},
    ),
    "PvtForImageClassification": Configuration(
        "pvt",
        lambda: _pixels(64),
        {**_LABELS, "image_size": 64, "hidden_sizes": [16, 24, 36, 40], "num_attention_heads": [1, 2, 3, 4]},
    ),
    "PvtV2ForImageClassification": Configuration(
        "pvt_v2",
        lambda: _pixels(64),
        {**_LABELS, "image_size": 64, "hidden_sizes": [16, 24, 36, 40], "num_attention_heads": [1, 2, 3, 4]}
        | {"depths": [1, 2, 1, 1], "mlp_ratios": [4, 3, 2, 2]},
    ),
    "PoolFormerForImageClassification": Configuration(
        "poolformer", lambda: _pixels(64), {**_LABELS, "hidden_sizes": [16, 24, 36, 40], "depths": [1, 2, 1, 1]}
    ),
    "LevitForImageClassification": Configuration(
        "levit",
        lambda: _pixels(64),
        {**_LABELS, "image_size": 64, "hidden_sizes": [32, 48, 64], "num_attention_heads": [2, 3, 4]}
        | {"depths": [1, 2, 1], "key_dim": [8, 8, 8], "patch_size": 16},
    ),
    "FocalNetForImageClassification": Configuration(
        "focalnet",
        _pixels,
        {**_LABELS, "image_size": 32, "patch_size": 2, "embed_dim": 24, "hidden_sizes": [24, 48], "depths": [2, 1]}
        | {"focal_levels": [2, 2], "focal_windows": [3, 3], "mlp_ratio": 3.0},
    ),
    "VideoMAEForVideoClassification": Configuration(
        "videomae", _video, {**_PATCHES, **_LABELS, "num_frames": 4, "tubelet_size": 2}
    ),
    "TimesformerForVideoClassification": Configuration("timesformer", _video, {**_PATCHES, **_LABELS, "num_frames": 4}),
}

_LANGUAGE = {
    "BertModel": Configuration("bert", _tokens, _TEXT),
    "BertForSequenceClassification": Configuration("bert", _tokens, {**_TEXT, **_LABELS}),
    "BertForMaskedLM/eager": Configuration("bert", _tokens, {**_TEXT, "attn_implementation": "eager"}),
    "DistilBertForSequenceClassification": Configuration(
        "distilbert",
        _tokens,
        {**_LABELS, "vocab_size": _VOCABULARY, "dim": 48, "n_layers": 2, "n_heads": 4, "hidden_dim": 80},
    ),
    "RobertaForTokenClassification": Configuration("roberta", _tokens, {**_TEXT, **_LABELS}),
    "AlbertForMaskedLM": Configuration("albert", _tokens, {**_TEXT, "embedding_size": 20}),
    "ElectraForPreTraining": Configuration("electra", _tokens, {**_TEXT, "embedding_size": 20}),
    "MobileBertForSequenceClassification": Configuration(
        "mobilebert", _tokens, {**_TEXT, **_LABELS, "embedding_size": 20, "intra_bottleneck_size": 32}
    ),
    "DebertaModel": Configuration(
        "deberta", _tokens, {**_TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
    ),
    "DebertaV2ForSequenceClassification": Configuration(
        "deberta-v2", _tokens, {**_TEXT, **_LABELS, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
    ),
    "SqueezeBertForSequenceClassification": Configuration(
        "squeezebert", _tokens, {**_TEXT, **_LABELS, "embedding_size": 48}
    ),
    "ModernBertForMaskedLM": Configuration(
        "modernbert", _tokens, {**_TEXT, "num_hidden_layers": 3, "local_attention": 6, "pad_token_id": 0}
    ),
    "FNetForSequenceClassification": Configuration(
        "fnet",
        _unpadded,
        {**_LABELS, "vocab_size": _VOCABULARY, "hidden_size": 48, "num_hidden_layers": 2, "intermediate_size": 80},
    ),
    "GPT2LMHeadModel": Configuration(
        "gpt2",
        _tokens,
        {"vocab_size": _VOCABULARY, "n_positions": 40, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_inner": 80}
        | {"use_cache": False, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "GPTNeoXForCausalLM": Configuration("gpt_neox", _tokens, _CAUSAL),
    "OPTForCausalLM": Configuration(
        "opt",
        _tokens,
        {"vocab_size": _VOCABULARY, "hidden_size": 48, "word_embed_proj_dim": 20, "num_hidden_layers": 2}
        | {"num_attention_heads": 4, "ffn_dim": 80, "max_position_embeddings": 40, "use_cache": False},
    ),
    "BloomForCausalLM": Configuration(
        "bloom", _tokens, {"vocab_size": _VOCABULARY, "hidden_size": 48, "n_layer": 2, "n_head": 4, "use_cache": False}
    ),
    "LlamaForCausalLM": Configuration("llama", _tokens, _GROUPED),
    "LlamaModel/eager": Configuration("llama", _tokens, {**_GROUPED, "attn_implementation": "eager"}),
    "MistralForCausalLM": Configuration("mistral", _tokens, {**_GROUPED, "sliding_window": 5, "head_dim": 10}),
    "Qwen2ForSequenceClassification": Configuration("qwen2", _tokens, {**_GROUPED, **_LABELS, "pad_token_id": 0}),
    "Qwen3ForCausalLM": Configuration("qwen3", _tokens, {**_GROUPED, "head_dim": 10}),
    "Gemma2ForCausalLM": Configuration("gemma2", _tokens, {**_GROUPED, "head_dim": 10, "sliding_window": 5}),
    "PhiForCausalLM": Configuration("phi", _tokens, _CAUSAL),
    "FalconForCausalLM": Configuration(
        "falcon",
        _tokens,
        {"vocab_size": _VOCABULARY, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"ffn_hidden_size": 80, "use_cache": False},
    ),
    "T5ForConditionalGeneration": Configuration(
        "t5",
        _pairs,
        {"vocab_size": _VOCABULARY, "d_model": 48, "d_kv": 10, "d_ff": 80, "num_layers": 2, "num_heads": 4}
        | {"use_cache": False},
    ),
    "T5EncoderModel/gated": Configuration(
        "t5",
        _tokens,
        {"vocab_size": _VOCABULARY, "d_model": 48, "d_kv": 10, "d_ff": 80, "num_layers": 2, "num_heads": 4}
        | {"use_cache": False, "feed_forward_proj": "gated-gelu"},
    ),
    "BartForConditionalGeneration": Configuration(
        "bart",
        _pairs,
        {"vocab_size": _VOCABULARY, "d_model": 48, "encoder_layers": 2, "decoder_layers": 2, "use_cache": False}
        | {"encoder_attention_heads": 4, "decoder_attention_heads": 3, "encoder_ffn_dim": 80, "decoder_ffn_dim": 72}
        | {"max_position_embeddings": 40},
    ),
    "MambaForCausalLM": Configuration(
        "mamba",
        _unpadded,
        {"vocab_size": _VOCABULARY, "hidden_size": 48, "num_hidden_layers": 2, "state_size": 10, "use_cache": False}
        | {"time_step_rank": 5},
    ),
}

_AUDIO = {
    "Wav2Vec2ForCTC": Configuration("wav2vec2", _waveform, _SPEECH),
    "Wav2Vec2Model/layer_norm": Configuration(
        "wav2vec2",
        _waveform,
        {**_SPEECH, "feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True, "layerdrop": 0.0},
    ),
    "HubertForSequenceClassification": Configuration("hubert", _waveform, {**_SPEECH, **_LABELS, "layerdrop": 0.0}),
    "WavLMModel": Configuration("wavlm", _waveform, {**_SPEECH, "layerdrop": 0.0}),
    "WhisperForConditionalGeneration": Configuration(
        "whisper",
        _mel_and_tokens,
        {"vocab_size": _VOCABULARY, "d_model": 48, "encoder_layers": 2, "decoder_layers": 2, "num_mel_bins": 20}
        | {"encoder_attention_heads": 4, "decoder_attention_heads": 3, "encoder_ffn_dim": 80, "decoder_ffn_dim": 72}
        | {"max_source_positions": 30, "max_target_positions": 40, "use_cache": False, "pad_token_id": 0}
        | {"bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
    ),
    "WhisperForAudioClassification": Configuration(
        "whisper",
        _mel_channels_first,
        {**_LABELS, "d_model": 48, "encoder_layers": 2, "num_mel_bins": 20, "encoder_attention_heads": 4}
        | {"encoder_ffn_dim": 80, "max_source_positions": 30, "classifier_proj_size": 28, "decoder_layers": 1},
    ),
    "ASTForAudioClassification": Configuration(
        "audio-spectrogram-transformer",
        _spectrogram,
        {**_WIDTHS, **_LABELS, "patch_size": 10, "num_mel_bins": 30, "max_length": 50},
    ),
    "Speech2TextForConditionalGeneration": Configuration(
        "speech_to_text",
        _speech_features,
        {"vocab_size": _VOCABULARY, "d_model": 48, "encoder_layers": 2, "decoder_layers": 2, "use_cache": False}
        | {"encoder_attention_heads": 4, "decoder_attention_heads": 3, "encoder_ffn_dim": 80, "decoder_ffn_dim": 72}
        | {"conv_channels": 56, "input_feat_per_channel": 20, "max_source_positions": 40, "max_target_positions": 40},
    ),
}

_TWO_AT_ONCE = {
    "CLIPModel": Configuration(
        "clip",
        _image_and_text,
        {"projection_dim": 28, "text_config": _TEXT_TOWER, "vision_config": _PATCHES},
    ),
    "SiglipModel": Configuration(
        "siglip", _image_and_text, {"text_config": {**_TEXT_TOWER, "projection_size": 48}, "vision_config": _PATCHES}
    ),
    "ViltForQuestionAnswering": Configuration("vilt", _image_and_text, {**_PATCHES, **_TEXT, **_LABELS}),
}

CONFIGURATIONS: dict[str, Configuration] = _VISION | _LANGUAGE | _AUDIO | _TWO_AT_ONCE
"""By the class's name, followed by what is special where the class is listed more than once."""


def names() -> list[str]:
    """Every configuration; nothing of transformers is imported for that."""
    return list(CONFIGURATIONS)


def net(name: str) -> Net:
    """One configuration; its family is the model type."""
    configuration = CONFIGURATIONS[name]

    def build() -> nn.Module:
        model_class = architecture(name)
        model: nn.Module = model_class(model_class.config_class(**configuration.settings))
        return model

    def inputs(model: nn.Module) -> Inputs:
        return (), configuration.inputs()

    return Net(name, configuration.family, build, inputs)


def architecture(name: str) -> Any:
    """The class of one configuration; imported here, since transformers loads each model type on first use."""
    torchvision_shim.install()
    return getattr(importlib.import_module("transformers"), name.partition("/")[0])
