"""Every task and backbone of KerasHub, from tiny configurations."""

import inspect

import keras
import numpy as np
from keras_hub import models

from entries import SEQUENCE, TOKENS, Entry

CLASSES = 3
IMAGE = (16, 16, 3)

SIZES = {"vocabulary_size": 12, "num_layers": 1, "hidden_dim": 8, "intermediate_dim": 16, "dropout": 0.1}
ENCODER = {**SIZES, "num_heads": 2}
DECODER = {**SIZES, "num_query_heads": 2, "num_key_value_heads": 1}
LENGTH = {"max_sequence_length": 8}
VIT = {"image_shape": IMAGE, "patch_size": 8, "num_layers": 1, "num_heads": 2, "hidden_dim": 8}
T5GEMMA = {
    **{f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in {
        "hidden_dim": 8, "intermediate_dim": 16, "num_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 4, "layer_types": ["full_attention"],
    }.items()},
    "vocabulary_size": 12, "dropout_rate": 0.1,
}  # fmt: skip
QWEN3_5 = {"head_dim": 4, "layer_types": ["full_attention"], "partial_rotary_factor": 0.5}
SMOLLM3 = {
    "vocabulary_size": 12, "hidden_dim": 8, "intermediate_dim": 16, "num_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "attention_bias": False, "attention_dropout": 0.1, "rope_layer_enabled_list": [True],
    "layer_types": ["attention"], "mlp_bias": False, "layer_norm_epsilon": 1e-6, "max_position_embeddings": 8,
    "rope_theta": 10000.0, "partial_rotary_factor": 1.0,
}  # fmt: skip
MOBILENET = {
    "stackwise_expansion": [[40, 56]], "stackwise_num_blocks": [2], "stackwise_num_filters": [[16, 16]],
    "stackwise_kernel_size": [[3, 5]], "stackwise_num_strides": [[2, 1]], "stackwise_se_ratio": [[None, 0.25]],
    "stackwise_activation": [["relu", "hard_swish"]], "stackwise_padding": [[1, 2]], "output_num_filters": 24,
    "input_activation": "hard_swish", "output_activation": "hard_swish", "input_num_filters": 8,
    "depthwise_filters": 8, "depthwise_stride": 2, "depthwise_residual": False, "last_layer_filter": 24,
    "squeeze_and_excite": 0.5, "image_shape": (32, 32, 3),
}  # fmt: skip
MIT = {
    "layerwise_depths": [1, 1], "num_layers": 2, "layerwise_num_heads": [1, 2], "layerwise_sr_ratios": [2, 1],
    "max_drop_path_rate": 0.3, "layerwise_patch_sizes": [7, 3], "layerwise_strides": [4, 2],
    "image_shape": (32, 32, 3), "hidden_dims": [8, 16],
}  # fmt: skip
RESNET = {
    "input_conv_filters": [64], "input_conv_kernel_sizes": [7], "stackwise_num_filters": [64, 64],
    "stackwise_num_blocks": [1, 1], "stackwise_num_strides": [1, 2], "block_type": "basic_block",
    "image_shape": (32, 32, 3),
}  # fmt: skip
PYRAMID = {
    "input_conv_filters": [8], "input_conv_kernel_sizes": [3], "stackwise_num_filters": [64, 8, 8, 8],
    "stackwise_num_blocks": [1] * 4, "stackwise_num_strides": [1, 2, 2, 2], "block_type": "basic_block_vd",
}  # fmt: skip
MOBILENETV5 = {
    "block_types": ["er", "uir", "mqa"], "num_filters": [8, 8, 8], "strides": [2, 2, 1], "act_layers": ["relu"] * 3,
    "exp_ratios": [2.0, 2.0, 0.0], "se_ratios": [0.0] * 3, "dw_kernel_sizes": [0, 3, 3],
    "dw_start_kernel_sizes": [0] * 3, "dw_end_kernel_sizes": [0] * 3, "exp_kernel_sizes": [3, 0, 0],
    "pw_kernel_sizes": [1, 0, 0], "num_heads": [0, 0, 2], "key_dims": [0, 0, 4], "value_dims": [0, 0, 4],
    "kv_strides": [0, 0, 1], "use_cpe": [False] * 3,
}  # fmt: skip
TOWER = {"hidden_dim": 8, "num_layers": 1, "num_heads": 2, "intermediate_dim": 16}
TEXT_TOWER = {**TOWER, **LENGTH, "vocabulary_size": 12, "embedding_dim": 8}
VISION_TOWER = {**TOWER, "patch_size": 8, "image_shape": IMAGE}
BLIP2 = {
    "vision_encoder": lambda: models.BLIP2VisionEncoder(
        **TOWER, image_size=16, patch_size=8, use_patch_bias=True, use_class_token=True, use_mha_bias=True,
        use_mlp_bias=True, dropout_rate=0.1, layer_norm_epsilon=1e-6, initializer_range=0.02,
    ),
    "qformer": lambda: models.BLIP2QFormer(
        **TOWER, num_query_tokens=2, vision_dim=8, cross_attention_frequency=1, dropout=0.1, layer_norm_epsilon=1e-6
    ),
}  # fmt: skip

# The arguments of each backbone, or of the backbone of one task. Those of DINOV2 and DINOV3 leave out the drop path:
# plain Keras fails to draw its noise, of shape (None, 1, 1).
BACKBONES = {
    "AlbertBackbone": {**ENCODER, **LENGTH, "embedding_dim": 8},
    "BASNetBackbone": {
        "image_encoder": lambda: models.ResNetBackbone(**PYRAMID), "num_classes": 1, "projection_filters": 8,
        "image_shape": (64, 64, 3),
    },
    "BLIP2Backbone": {
        **BLIP2,
        "language_model": lambda: models.BLIP2CustomOPT(
            **ENCODER, max_sequence_length=16, num_query_tokens=2, qformer_hidden_dim=8
        ),
    },
    "BLIP2Seq2SeqLM": {
        **BLIP2,
        "language_model": lambda: models.BLIP2FlanT5(
            **ENCODER, num_query_tokens=2, qformer_hidden_dim=8, lm_head=keras.layers.Dense(12)
        ),
    },
    "BartBackbone": {**ENCODER, **LENGTH},
    "BertBackbone": {**ENCODER, **LENGTH},
    "BloomBackbone": ENCODER,
    "CLIPBackbone": {
        "vision_encoder": lambda: models.CLIPVisionEncoder(**VISION_TOWER),
        "text_encoder": lambda: models.CLIPTextEncoder(**TEXT_TOWER), "projection_dim": 8,
    },
    "CLIPTextEncoder": TEXT_TOWER,
    "CLIPVisionEncoder": VISION_TOWER,
    "CSPNetBackbone": {
        "stem_filters": 8, "stem_kernel_size": 3, "stem_strides": 2, "stackwise_depth": [1, 1],
        "stackwise_strides": [1, 2], "stackwise_num_filters": [8, 16], "block_type": "dark_block", "stage_type": "csp",
        "block_ratio": [0.5], "image_shape": (32, 32, 3),
    },
    "DFineBackbone": {
        "backbone": lambda: models.HGNetV2Backbone(
            **{**BACKBONES["HGNetV2Backbone"], "image_shape": (None, None, 3), "out_features": ["stage1", "stage2"]}
        ),
        "decoder_in_channels": [8, 8], "encoder_hidden_dim": 8, "num_labels": CLASSES, "num_denoising": 0,
        "learn_initial_query": False, "num_queries": 4, "anchor_image_size": (32, 32), "feat_strides": [4, 8],
        "num_feature_levels": 2, "hidden_dim": 8, "encoder_in_channels": [8, 16], "encode_proj_layers": [1],
        "num_attention_heads": 2, "encoder_ffn_dim": 16, "num_encoder_layers": 1, "hidden_expansion": 0.5,
        "depth_multiplier": 0.5, "eval_idx": -1, "num_decoder_layers": 1, "decoder_attention_heads": 2,
        "decoder_ffn_dim": 16, "decoder_n_points": [2, 2], "lqe_hidden_dim": 8, "num_lqe_layers": 1,
        "out_features": ["stage1", "stage2"], "image_shape": (32, 32, 3),
    },
    "DINOV2Backbone": {
        "patch_size": 8, "num_layers": 2, "hidden_dim": 8, "num_heads": 2, "intermediate_dim": 16, "dropout_rate": 0.1,
        "image_shape": IMAGE, "position_embedding_shape": IMAGE,
    },
    "DINOV3Backbone": {
        "patch_size": 8, "num_layers": 2, "hidden_dim": 8, "num_heads": 2, "intermediate_dim": 16,
        "attention_dropout": 0.1, "image_shape": IMAGE,
    },
    "DebertaV3Backbone": {**ENCODER, **LENGTH, "bucket_size": 4},
    "DeepLabV3Backbone": {
        "image_encoder": lambda: models.ResNetBackbone(**PYRAMID), "spatial_pyramid_pooling_key": "P4",
        "low_level_feature_key": "P2", "upsampling_size": 4, "dilation_rates": [2], "projection_filters": 8,
        "image_shape": (32, 32, 3),
    },
    "DeiTBackbone": {**VIT, "intermediate_dim": 16, "image_shape": (16, 16, 3), "dropout_rate": 0.1},
    "DenseNetBackbone": {"stackwise_num_repeats": [1, 1], "growth_rate": 4, "image_shape": (32, 32, 3)},
    "DepthAnythingBackbone": {
        "image_encoder": lambda: models.DINOV2Backbone(**{**BACKBONES["DINOV2Backbone"], "patch_size": 4}),
        "feature_keys": ["stage1", "stage2"], "reassemble_factors": [2, 1], "neck_hidden_dims": [8, 8],
        "fusion_hidden_dim": 8, "head_hidden_dim": 8, "head_in_index": -1,
    },
    "DistilBertBackbone": {**ENCODER, **LENGTH},
    "ESMBackbone": {**ENCODER, **LENGTH},
    "EdRecBackbone": {
        "vocab_size": 12, "num_layers_enc": 1, "num_layers_dec": 1, "hidden_dim": 8, "intermediate_dim": 16,
        "num_heads": 2, "dropout": 0.1,
    },
    "EfficientNetBackbone": {
        "stackwise_kernel_sizes": [3, 3], "stackwise_num_repeats": [1, 2], "stackwise_input_filters": [8, 8],
        "stackwise_output_filters": [8, 16], "stackwise_expansion_ratios": [1, 2],
        "stackwise_squeeze_and_excite_ratios": [0.25, 0.25], "stackwise_strides": [1, 2],
        "stackwise_block_types": ["v1", "v1"], "stackwise_width_coefficients": [1.0, 1.0],
        "stackwise_depth_coefficients": [1.0, 1.0], "stackwise_force_input_filters": [0, 0],
        "stackwise_nores_option": [False, False], "input_shape": (32, 32, 3),
    },
    "ElectraBackbone": {
        **{name: value for name, value in ENCODER.items() if name != "vocabulary_size"}, **LENGTH, "vocab_size": 12,
        "embedding_dim": 8,
    },
    "FNetBackbone": {**SIZES, **LENGTH},
    "FalconBackbone": {
        "vocabulary_size": 12, "num_layers": 1, "num_attention_heads": 2, "hidden_dim": 8, "intermediate_dim": 16,
        "attention_dropout_rate": 0.1, "feedforward_dropout_rate": 0.1,
    },
    "GPT2Backbone": {**ENCODER, **LENGTH},
    "GPTNeoXBackbone": {**ENCODER, **LENGTH, "rotary_percentage": 0.5},
    "Gemma3Backbone": {**DECODER, "head_dim": 4, "image_size": 8},
    "Gemma3nBackbone": {
        "text_vocab_size": 12, "text_hidden_size": 8, "num_hidden_layers": 1, "pad_token_id": 0,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "intermediate_size": [16],
        "hidden_activation": "gelu_approximate", "layer_types": ["full_attention"], "sliding_window": 4,
        "rope_theta": 10000.0, "max_position_embeddings": 8, "vocab_size_per_layer_input": 12,
        "hidden_size_per_layer_input": 4, "altup_num_inputs": 2, "laurel_rank": 4, "attention_dropout": 0.1,
    },
    "Gemma4Backbone": {**DECODER, "head_dim": 4, "image_size": 8},
    "GemmaBackbone": {**DECODER, "head_dim": 4},
    "GptOssBackbone": {**DECODER, "num_experts": 2, "top_k": 1, "head_dim": 4, "sliding_window": 4},
    "HGNetV2Backbone": {
        "depths": [1, 1], "embedding_size": 8, "hidden_sizes": [8, 16], "stem_channels": [3, 8, 8],
        "hidden_act": "relu", "use_learnable_affine_block": False,
        "stackwise_stage_filters": [(8, 8, 8, 1, 1, 3), (8, 8, 16, 1, 1, 3)], "apply_downsample": [False, True],
        "use_lightweight_conv_block": [False, False], "image_shape": (32, 32, 3),
    },
    "Llama3Backbone": DECODER,
    "LlamaBackbone": DECODER,
    "MetaCLIP2Backbone": {
        "vision_encoder": lambda: models.MetaCLIP2VisionEncoder(**VISION_TOWER),
        "text_encoder": lambda: models.MetaCLIP2TextEncoder(**TEXT_TOWER), "projection_dim": 8,
    },
    "MetaCLIP2TextEncoder": TEXT_TOWER,
    "MetaCLIP2VisionEncoder": VISION_TOWER,
    "MiTBackbone": MIT,
    "MistralBackbone": DECODER,
    "MixtralBackbone": {**DECODER, "num_experts": 2},
    "MobileNetBackbone": MOBILENET,
    "MobileNetV5Backbone": {
        **{f"stackwise_{name}": [[value] for value in values] for name, values in MOBILENETV5.items()},
        "stackwise_num_blocks": [1, 1, 1], "stem_size": 8, "use_msfa": False, "image_shape": (32, 32, 3),
    },
    "MoonshineBackbone": {
        "vocabulary_size": 12, "filter_dim": 8, "encoder_num_layers": 1, "decoder_num_layers": 1, "hidden_dim": 8,
        "intermediate_dim": 16, "encoder_num_heads": 2, "decoder_num_heads": 2, "dropout": 0.1,
    },
    "OPTBackbone": {**ENCODER, **LENGTH},
    "PARSeqBackbone": {
        "image_encoder": lambda: models.ViTBackbone(**VIT, mlp_dim=16, use_class_token=False), "vocabulary_size": 12,
        "max_label_length": 2, "decoder_hidden_dim": 8, "num_decoder_layers": 1, "num_decoder_heads": 2,
        "decoder_mlp_dim": 16,
    },
    "PaliGemmaBackbone": {
        **DECODER, "head_dim": 4, "image_size": 8, "vit_patch_size": 4, "vit_num_heads": 2, "vit_hidden_dim": 8,
        "vit_num_layers": 1,
    },
    "Phi3Backbone": DECODER,
    "Qwen3Backbone": {**DECODER, "head_dim": 4},
    "Qwen3MoeBackbone": {**DECODER, "head_dim": 4, "moe_intermediate_dim": 8, "num_experts": 2, "top_k": 1},
    "Qwen3_5Backbone": {**DECODER, **QWEN3_5},
    "Qwen3_5MoeBackbone": {
        **{name: value for name, value in DECODER.items() if name != "intermediate_dim"}, **QWEN3_5,
        "moe_intermediate_dim": 8, "shared_expert_intermediate_size": 8, "num_experts": 2, "top_k": 1,
    },
    "QwenBackbone": DECODER,
    "QwenMoeBackbone": {
        **DECODER, "moe_intermediate_dim": 8, "shared_expert_intermediate_dim": 8, "num_experts": 2, "top_k": 1,
    },
    "RWKV7Backbone": {
        "hidden_size": 8, "head_size": 4, "num_layers": 1, "vocabulary_size": 12, "intermediate_dim": 16,
        "gate_lora": 4, "mv_lora": 4, "aaa_lora": 4, "decay_lora": 4, "dropout_rate": 0.1,
    },
    "ResNetBackbone": RESNET,
    "RetinaNetBackbone": {
        "image_encoder": lambda: models.ResNetBackbone(**PYRAMID), "min_level": 3, "max_level": 4, "use_p5": False,
        "image_shape": (32, 32, 3),
    },
    "RobertaBackbone": {**ENCODER, **LENGTH},
    "RoformerV2Backbone": {**ENCODER, "head_size": 4},
    "SegFormerBackbone": {"image_encoder": lambda: models.MiTBackbone(**MIT), "projection_filters": 8},
    "SigLIPBackbone": {
        "vision_encoder": lambda: models.SigLIPVisionEncoder(**VISION_TOWER),
        "text_encoder": lambda: models.SigLIPTextEncoder(**TEXT_TOWER),
    },
    "SigLIPTextEncoder": TEXT_TOWER,
    "SigLIPVisionEncoder": VISION_TOWER,
    "SmolLM3Backbone": SMOLLM3,
    "SwinTransformerBackbone": {
        "image_shape": (32, 32, 3), "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4,
    },
    "T5Backbone": ENCODER,
    "T5GemmaBackbone": T5GEMMA,
    "T5Gemma2Backbone": T5GEMMA,
    "VGGBackbone": {"stackwise_num_repeats": [1, 1], "stackwise_num_filters": [8, 8], "image_shape": (32, 32, 3)},
    "ViTBackbone": {**VIT, "mlp_dim": 16, "dropout_rate": 0.1},
    "ViTDetBackbone": {
        "hidden_size": 8, "num_layers": 1, "intermediate_dim": 16, "num_heads": 2,
        "global_attention_layer_indices": [0], "image_shape": (32, 32, 3), "patch_size": 8, "num_output_channels": 8,
        "window_size": 2,
    },
    "VideoPrismBackbone": {
        "num_frames": 2, "patch_size": 8, "hidden_dim": 8, "intermediate_dim": 16, "num_heads": 2,
        "num_spatial_layers": 1, "num_temporal_layers": 1, "num_auxiliary_layers": 0, "dropout_rate": 0.1,
        "image_shape": IMAGE,
    },
    "WhisperBackbone": {**ENCODER, "max_encoder_sequence_length": 8, "max_decoder_sequence_length": 8},
    "XLMRobertaBackbone": {**ENCODER, **LENGTH},
    "XLNetBackbone": ENCODER,
    "XceptionBackbone": {
        "stackwise_conv_filters": [[8, 8], [8, 8]], "stackwise_pooling": [True, False], "image_shape": (32, 32, 3),
    },
}  # fmt: skip

# Classes without an entry, with the method that raises `NotImplementedError`.
DO_NOT_TRAIN = {
    "FluxTextToImage": "fit",
    "Gemma4AssistantCausalLM": "call",
    "SAM3PromptableConceptImageSegmenter": "fit",
    "SAMImageSegmenter": "fit",
    "StableDiffusion3ImageToImage": "fit",
    "StableDiffusion3Inpaint": "fit",
    "StableDiffusion3TextToImage": "fit",
}

# Arguments of tasks besides `backbone`, `preprocessor` and `num_classes`.
TASK_OPTIONS = {
    "VGGImageClassifier": {"pooling_hidden_dim": 8},
    "MobileNetImageClassifier": {"num_features": 16},
    "MobileNetV5ImageClassifier": {"head_hidden_size": 8, "drop_rate": 0.2},
    "DepthAnythingDepthEstimator": {"depth_estimation_type": "metric", "max_depth": 2.0},
    "RetinaNetObjectDetector": {"pre_logits_num_conv_layers": 1},
    "PARSeqCausalLM": {"compile": False},  # its default loss needs a preprocessor
}  # fmt: skip


def images(rng, size=32):
    return rng.normal(size=(4, size, size, 3)).astype("float32")


def segmented_images(rng):
    """Returns images with a class per pixel, one-hot: the tasks compute the categorical accuracy."""
    return images(rng), np.eye(CLASSES)[rng.integers(0, CLASSES, (4, 32, 32))]


def boxes(rng):
    """Returns images with one box each."""
    return images(rng), {
        "boxes": np.tile(np.array([[[4.0, 4.0, 20.0, 20.0]]], "float32"), (4, 1, 1)),
        "labels": np.ones((4, 1), "int32"),
    }


def audio(rng):
    """Returns sounds that are longer than the kernels, and their transcripts."""
    x = {
        "encoder_input_values": rng.normal(size=(4, 1000, 1)).astype("float32"),
        "encoder_padding_mask": np.ones((4, 1000), bool),
        "decoder_token_ids": rng.integers(1, TOKENS, (4, SEQUENCE)),
        "decoder_padding_mask": np.ones((4, SEQUENCE), bool),
    }
    return x, rng.integers(0, TOKENS, (4, SEQUENCE))


def pairs(rng):
    """Returns pairs of an image and a text. The target is the position of the pair in its batch of 2."""
    target = np.array([0, 1, 0, 1])
    x = {"images": images(rng, 16), "token_ids": rng.integers(1, TOKENS, (4, SEQUENCE))}
    return x, {"vision_logits": target, "text_logits": target}


def labelled_images(rng):
    """Returns images with a label of 2 characters: longer ones are permuted, which needs sample weights."""
    x = {"images": images(rng, 16), "token_ids": rng.integers(1, TOKENS, (4, 2)), "padding_mask": np.ones((4, 2))}
    return x, rng.integers(0, TOKENS, (4, 2))


# The data of tasks whose targets are not one class per vector of the output.
DATA = {
    **dict.fromkeys(("DeepLabV3ImageSegmenter", "SegFormerImageSegmenter"), segmented_images),
    "BASNetImageSegmenter": lambda rng: (images(rng, 64), rng.integers(0, 2, (4, 64, 64, 1))),
    "CLIPBackbone": pairs,
    "DFineObjectDetector": boxes,
    "DepthAnythingDepthEstimator": lambda rng: (images(rng, 16), {"depths": rng.uniform(size=(4, 16, 16, 1))}),
    "MetaCLIP2Backbone": pairs,
    "MoonshineAudioToText": audio,
    "PARSeqCausalLM": labelled_images,
    "RetinaNetObjectDetector": boxes,
    "SigLIPBackbone": pairs,
}
LOSSES = {
    **dict.fromkeys(
        ("DeepLabV3ImageSegmenter", "SegFormerImageSegmenter"),
        lambda: keras.losses.CategoricalCrossentropy(from_logits=True),
    ),
    "DepthAnythingDepthEstimator": keras.losses.MeanSquaredError,
    **dict.fromkeys(
        ("BASNetImageSegmenter", "DFineObjectDetector", "RetinaNetObjectDetector", "SigLIPBackbone"), lambda: "auto"
    ),
}

# These tasks draw nothing in training: the last ignores its `attention_dropout`, the others have no dropout.
NOT_RANDOM = {"DeepLabV3ImageSegmenter", "MobileNetImageClassifier", "SmolLM3CausalLM"}
# Without a preprocessor, `generate` of these tasks fails in plain Keras too.
NEEDS_PREPROCESSOR_TO_GENERATE = {"Gemma3CausalLM", "RWKV7CausalLM"}
# These lose trained position embeddings when plain Keras saves them, unless the sum of the embeddings has fallen.
LOSES_WEIGHTS_WHEN_SAVED = {"DINOV2Backbone", "DepthAnythingDepthEstimator"}

_ABSTRACT = {
    "AudioToText", "Backbone", "CausalLM", "Classifier", "DepthEstimator", "FeaturePyramidBackbone", "ImageClassifier",
    "ImageObjectDetector",
    "ImageSegmenter", "ImageToImage", "Inpaint", "MaskedLM", "ObjectDetector", "Seq2SeqLM", "Task", "TextClassifier",
    "TextEmbedder", "TextToImage",
}  # fmt: skip


def classes():
    """Returns the public tasks, and the public backbones that have no task, by name."""
    public = {name: c for name, c in vars(models).items() if inspect.isclass(c) and name not in _ABSTRACT}
    tasks = {name: c for name, c in public.items() if issubclass(c, models.Task)}
    used = {c.backbone_cls for c in tasks.values() if getattr(c, "num_classes", None) is None}
    backbones = {
        name: c
        for name, c in public.items()
        if issubclass(c, models.Backbone) and c not in used and c.__name__ == name  # without other names of a class
    }
    tasks = {name: c for name, c in tasks.items() if c.__name__ == name}
    return {**tasks, **backbones}


def backbone_of(cls):
    return (cls.backbone_cls if issubclass(cls, models.Task) else cls).__name__


def build(cls):
    name = backbone_of(cls)
    arguments = BACKBONES.get(cls.__name__, BACKBONES[name])
    arguments = {key: value() if callable(value) else value for key, value in arguments.items()}
    if not issubclass(cls, models.Task):
        backbone = cls(**arguments)
        if name in LOSSES:  # its own loss would be lost in another model
            return backbone
        return with_augmentation(backbone) if name in DATA else with_head(backbone)
    options = dict(TASK_OPTIONS.get(cls.__name__, {}))
    parameters = inspect.signature(cls.__init__).parameters
    if "num_classes" in parameters:
        options["num_classes"] = CLASSES
    if "dropout" in parameters:
        options["dropout"] = 0.2
    if "preprocessor" in parameters:
        options["preprocessor"] = None
    return cls(backbone=getattr(models, name)(**arguments), **options)


def with_augmentation(backbone):
    """Returns a model that drops pixels. The contrastive backbones have no dropout of their own."""
    images = keras.layers.Dropout(0.2)(backbone.input["images"])
    return keras.Model(backbone.input, backbone({**backbone.input, "images": images}))


def with_head(backbone):
    """Returns a classifier of every vector that the backbone returns, or of the first of its outputs."""
    outputs = backbone.output
    if isinstance(outputs, dict):
        outputs = outputs.get("sequence_output", list(outputs.values())[-1])
    outputs = keras.layers.Dense(CLASSES)(keras.layers.Dropout(0.2)(outputs))
    return keras.Model(backbone.input, outputs, name=f"{backbone.name}_classifier")


ENTRIES = [
    Entry(
        backbone_of(cls).removesuffix("Backbone"),
        name,
        lambda cls=cls: build(cls),
        DATA.get(name),
        LOSSES.get(name),
        is_random=name not in NOT_RANDOM,
    )
    for name, cls in sorted(classes().items())
    if name not in DO_NOT_TRAIN
]
