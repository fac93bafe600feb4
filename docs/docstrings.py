"""The docstrings in the API page: examples become code, and names become links.

`Docstrings` is an extension of griffe, and `on_config` a hook of mkdocs.
"""

import re
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig

PACKAGE = Path(__file__).parents[1] / "keras_rdrop"
# Keras has no page per name, so its names link to the documentation of TensorFlow, which lacks a few of them.
NOT_DOCUMENTED = {"keras.distribution", "keras.layers.ReversibleEmbedding"}
KERAS = {name for path in PACKAGE.rglob("*.py") for name in re.findall(r"`(keras(?:\.\w+)+)`", path.read_text())}
KERAS -= NOT_DOCUMENTED
OURS = {name: f"keras_rdrop.{name}" for name in ("RDrop", "RDropModel", "TorchDataParallel")} | {
    name: f"keras_rdrop.{module}.{name}"
    for module in ("divergences", "losses")
    for name in re.findall(r"^(?:class|def) (\w+)", (PACKAGE / f"{module}.py").read_text(), re.MULTILINE)
}


class Docstrings(griffe.Extension):
    def on_object(self, *, obj, **kwargs):
        if obj.docstring:
            paragraphs = r"^(>>> .*(?:\n.+)*)"
            text = re.sub(paragraphs, r"```pycon\n\1\n```", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r"`([\w.]+)`", lambda match: link(match[1], obj.path), text)


def link(name: str, path: str) -> str:
    """Links a name in the docstring of the object at `path`."""
    target = name if name in KERAS else OURS.get(name)
    return f"`{name}`" if target in (None, path) else f"[`{name}`][{target}]"


def on_config(config: MkDocsConfig) -> None:
    for name in KERAS:
        parent, _, member = name.rpartition(".")
        is_method = parent.rpartition(".")[2][:1].isupper()
        page = f"{parent}#{member}" if is_method else name
        url = f"https://www.tensorflow.org/api_docs/python/tf/{page.replace('.', '/')}"
        config.plugins["autorefs"].register_url(name, url)
