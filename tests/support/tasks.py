"""Tiny KerasHub tasks with vocabularies of a few words, built without a download."""

import keras_hub

from support.bases import CLASSES, build_task

models = keras_hub.models
TRANSFORMER = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 16, "max_sequence_length": 8}


def text_classifier():
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "a", "good", "bad", "film", "movie"]
    tokenizer = models.BertTokenizer(vocabulary=vocabulary)
    return build_task(models.BertTextClassifierPreprocessor(tokenizer, sequence_length=8))


def byte_pairs(special):
    """Returns a vocabulary of the special tokens and words of the letters t, h and e, and its merges."""
    words = ["!", "e", "h", "t", "th", "the", "Ġ", "Ġt", "Ġth", "Ġthe"]
    merges = ["t h", "th e", "Ġ t", "Ġt h", "Ġth e"]
    return {"vocabulary": {word: i for i, word in enumerate([*special, *words])}, "merges": merges}


def roberta_classifier():
    tokenizer = models.RobertaTokenizer(**byte_pairs(["<s>", "<pad>", "</s>", "<mask>"]))
    backbone = models.RobertaBackbone(tokenizer.vocabulary_size(), **TRANSFORMER)
    preprocessor = models.RobertaTextClassifierPreprocessor(tokenizer, sequence_length=8)
    return models.RobertaTextClassifier(backbone, num_classes=CLASSES, preprocessor=preprocessor)


def causal_lm(hub=keras_hub):
    tokenizer = hub.models.GPT2Tokenizer(**byte_pairs(["<|endoftext|>"]))
    backbone = hub.models.GPT2Backbone(tokenizer.vocabulary_size(), **TRANSFORMER)
    return hub.models.GPT2CausalLM(backbone, hub.models.GPT2CausalLMPreprocessor(tokenizer, sequence_length=8))


def seq2seq_lm():
    tokenizer = models.BartTokenizer(**byte_pairs(["<s>", "<pad>", "</s>", "<mask>"]))
    backbone = models.BartBackbone(tokenizer.vocabulary_size(), **TRANSFORMER)
    preprocessor = models.BartSeq2SeqLMPreprocessor(tokenizer, encoder_sequence_length=8, decoder_sequence_length=8)
    return models.BartSeq2SeqLM(backbone, preprocessor)


def image_classifier(dropout):
    backbone = models.ViTBackbone((8, 8, 3), (4, 4), 1, 2, 8, 16, dropout_rate=dropout, attention_dropout=dropout)
    return models.ViTImageClassifier(backbone, num_classes=CLASSES, dropout=dropout)


def gemma3():
    """A causal language model that reads images, with the tokenizer of the tests of KerasHub."""
    from keras_hub.src.models.gemma3.gemma3_image_converter import Gemma3ImageConverter
    from keras_hub.src.models.gemma3.gemma3_vision_encoder import Gemma3VisionEncoder
    from keras_hub.src.tests.mocks.mock_gemma3_tokenizer import MockGemma3Tokenizer

    tokenizer = MockGemma3Tokenizer()
    preprocessor = models.Gemma3CausalLMPreprocessor(
        tokenizer, Gemma3ImageConverter(image_size=(8, 8)), sequence_length=12, max_images_per_prompt=1,
        num_vision_tokens_per_image=4,
    )  # fmt: skip
    vision_encoder = Gemma3VisionEncoder(
        image_size=8, patch_size=2, pool_size=2, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=8,
        output_dim=8,
    )  # fmt: skip
    backbone = models.Gemma3Backbone(
        tokenizer.vocabulary_size(), image_size=8, num_layers=1, num_query_heads=2, num_key_value_heads=1, hidden_dim=8,
        intermediate_dim=8, head_dim=4, vision_encoder=vision_encoder, dropout=0.1,
    )  # fmt: skip
    return models.Gemma3CausalLM(backbone=backbone, preprocessor=preprocessor)


def gemma4():
    """A causal language model without an image encoder: with one but no audio encoder, KerasHub's own `fit` fails."""
    from keras_hub.src.tests.mocks.mock_gemma4_tokenizer import MockGemma4Tokenizer

    tokenizer = MockGemma4Tokenizer()
    preprocessor = models.Gemma4CausalLMPreprocessor(tokenizer, sequence_length=12)
    backbone = models.Gemma4Backbone(
        tokenizer.vocabulary_size(), image_size=8, num_layers=1, num_query_heads=2, num_key_value_heads=1, hidden_dim=8,
        intermediate_dim=8, head_dim=4, dropout=0.1,
    )  # fmt: skip
    return models.Gemma4CausalLM(backbone=backbone, preprocessor=preprocessor)
