"""The examples in docstrings that start with `>>>` become code in the API page. This is an extension of griffe."""

import re

import griffe


class Doctests(griffe.Extension):
    def on_object(self, *, obj, **kwargs):
        if obj.docstring:
            paragraphs = r"^(>>> .*(?:\n.+)*)"
            obj.docstring.value = re.sub(paragraphs, r"```pycon\n\1\n```", obj.docstring.value, flags=re.MULTILINE)
