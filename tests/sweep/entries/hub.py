"""Every task and backbone of KerasHub, from tiny configurations."""

import inspect

import keras
from keras_hub import models

from entries import Entry

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

# The arguments of each backbone.
BACKBONES = {
    "AlbertBackbone": {**ENCODER, **LENGTH, "embedding_dim": 8},
    "BartBackbone": {**ENCODER, **LENGTH},
    "BertBackbone": {**ENCODER, **LENGTH},
    "BloomBackbone": ENCODER,
    "DINOV2Backbone": {
        "patch_size": 8, "num_layers": 2, "hidden_dim": 8, "num_heads": 2, "intermediate_dim": 16, "dropout_rate": 0.1,
        "drop_path_rate": 0.3, "image_shape": IMAGE, "position_embedding_shape": IMAGE,
    },
    "DINOV3Backbone": {
        "patch_size": 8, "num_layers": 2, "hidden_dim": 8, "num_heads": 2, "intermediate_dim": 16,
        "attention_dropout": 0.1, "drop_path_rate": 0.3, "image_shape": IMAGE,
    },
    "DebertaV3Backbone": {**ENCODER, **LENGTH, "bucket_size": 4},
    "DeiTBackbone": {**VIT, "intermediate_dim": 16, "image_shape": (16, 16, 3), "dropout_rate": 0.1},
    "DenseNetBackbone": {"stackwise_num_repeats": [1, 1], "growth_rate": 4, "image_shape": (32, 32, 3)},
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
    "MiTBackbone": MIT,
    "MistralBackbone": DECODER,
    "MixtralBackbone": {**DECODER, "num_experts": 2},
    "MobileNetBackbone": MOBILENET,
    "OPTBackbone": {**ENCODER, **LENGTH},
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
    "RobertaBackbone": {**ENCODER, **LENGTH},
    "RoformerV2Backbone": {**ENCODER, "head_size": 4},
    "SegFormerBackbone": {"image_encoder": lambda: models.MiTBackbone(**MIT), "projection_filters": 8},
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
    "WhisperBackbone": {**ENCODER, "max_encoder_sequence_length": 8, "max_decoder_sequence_length": 8},
    "XLMRobertaBackbone": {**ENCODER, **LENGTH},
    "XLNetBackbone": ENCODER,
    "XceptionBackbone": {
        "stackwise_conv_filters": [[8, 8], [8, 8]], "stackwise_pooling": [True, False], "image_shape": (32, 32, 3),
    },
}  # fmt: skip

# Classes without a configuration here, by backbone or task, with the reason.
NOT_COVERED = {
    "BASNetBackbone": "needs a tiny image encoder with the five stages of ResNet34",
    "BLIP2Backbone": "needs a tiny vision encoder, Q-Former and language model",
    "CSPNetBackbone": "needs a tiny configuration whose shapes match",
    "MoonshineBackbone": "needs audio that is longer than its kernels",
    "CLIPBackbone": "needs a contrastive loss: its logits compare all rows of the batch",
    "DFineBackbone": "needs a loss of its own: it is passed the boxes as targets",
    "DeepLabV3Backbone": "needs a tiny image encoder with the pyramid levels of ResNet50",
    "DepthAnythingBackbone": "needs a tiny DINOV2 encoder with the feature keys of its neck",
    "FluxBackbone": "needs a diffusion loss: the task does not train",
    "FeaturePyramidBackbone": "is abstract",
    "Gemma3nBackbone": "needs vision and audio encoders",
    "MetaCLIP2Backbone": "needs a contrastive loss: its logits compare all rows of the batch",
    "MobileNetV5Backbone": "needs the settings of its 17 lists of stages",
    "PARSeqBackbone": "needs a tiny image encoder; the task permutes its targets",
    "RetinaNetBackbone": "needs a tiny image encoder; its detector takes boxes as targets",
    "SAM3PromptableConceptBackbone": "needs six parts; the task does not train",
    "SAMBackbone": "needs three parts; the task does not train",
    "SigLIPBackbone": "needs a contrastive loss: its logits compare all rows of the batch",
    "StableDiffusion3Backbone": "needs a diffusion loss: the task does not train",
    "VideoPrismBackbone": "needs videos, of several encoders",
    **{
        f"{name}{part}Encoder": "is a part of a contrastive model"
        for name in ("CLIP", "MetaCLIP2", "SigLIP")
        for part in ("Text", "Vision")
    },
    "Gemma4AssistantCausalLM": "needs the hidden states of a larger model",
}

# Arguments of tasks beside `backbone`, `preprocessor` and `num_classes`.
TASK_OPTIONS = {
    "VGGImageClassifier": {"pooling_hidden_dim": 8},
    "MobileNetImageClassifier": {"num_features": 16},
}

# These tasks draw nothing in training: the first has no dropout, the second ignores its `attention_dropout`.
NOT_RANDOM = {"MobileNetImageClassifier", "SmolLM3CausalLM"}
# Without a preprocessor, `generate` of these tasks fails in plain Keras too.
NEEDS_PREPROCESSOR_TO_GENERATE = {"Gemma3CausalLM", "RWKV7CausalLM"}

_ABSTRACT = {
    "AudioToText", "Backbone", "CausalLM", "Classifier", "DepthEstimator", "ImageClassifier", "ImageObjectDetector",
    "ImageSegmenter", "ImageToImage", "Inpaint", "MaskedLM", "ObjectDetector", "Seq2SeqLM", "Task", "TextClassifier",
    "TextEmbedder", "TextToImage",
}  # fmt: skip


def classes():
    """Return the public tasks, and the public backbones that have no task, by name."""
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


def reason_not_covered(cls):
    """Return why a class has no entry, or None."""
    return NOT_COVERED.get(cls.__name__) or NOT_COVERED.get(backbone_of(cls))


def build(cls):
    name = backbone_of(cls)
    arguments = {key: value() if callable(value) else value for key, value in BACKBONES[name].items()}
    if not issubclass(cls, models.Task):
        return with_head(cls(**arguments))
    options = dict(TASK_OPTIONS.get(cls.__name__, {}))
    parameters = inspect.signature(cls.__init__).parameters
    if "num_classes" in parameters:
        options["num_classes"] = CLASSES
    if "dropout" in parameters:
        options["dropout"] = 0.2
    if "preprocessor" in parameters:
        options["preprocessor"] = None
    return cls(backbone=getattr(models, name)(**arguments), **options)


def with_head(backbone):
    """Return a classifier of every vector that the backbone returns, or of the first of its outputs."""
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
        is_random=name not in NOT_RANDOM,
    )
    for name, cls in sorted(classes().items())
    if reason_not_covered(cls) is None
]
