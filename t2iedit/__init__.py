"""t2iedit: edit the text embeddings of text-to-image models."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2iedit.attention import Probabilities as Probabilities
    from t2iedit.attention import Site as Site
    from t2iedit.conditioning import Conditioning as Conditioning
    from t2iedit.edit import Edit as Edit
    from t2iedit.edit import File as File
    from t2iedit.edit import Options as Options
    from t2iedit.edit import Phrase as Phrase
    from t2iedit.edit import Prompt as Prompt
    from t2iedit.edit import Run as Run
    from t2iedit.encoding import condition as condition
    from t2iedit.encoding import encode_texts as encode_texts
    from t2iedit.errors import EditNotSupported as EditNotSupported
    from t2iedit.errors import OutputNotWritable as OutputNotWritable
    from t2iedit.errors import SpanTruncated as SpanTruncated
    from t2iedit.errors import T2IEditError as T2IEditError
    from t2iedit.errors import UserError as UserError
    from t2iedit.hookspecs import hookimpl as hookimpl
    from t2iedit.model import Model as Model
    from t2iedit.opening import open_model as open_model
    from t2iedit.pipeline import Progress as Progress
    from t2iedit.pipeline import denoise as denoise
    from t2iedit.pipeline import encode as encode
    from t2iedit.pipeline import generate as generate
    from t2iedit.pipeline import start as start
    from t2iedit.plots import labelled_grid as labelled_grid
    from t2iedit.provenance import read_recipe as read_recipe
    from t2iedit.provenance import save_image as save_image
    from t2iedit.request import Request as Request
    from t2iedit.request import Result as Result
    from t2iedit.spans import Span as Span
    from t2iedit.spans import locate as locate
    from t2iedit.spans import occurrences as occurrences
    from t2iedit.text import Kind as Kind
    from t2iedit.text import TextEmbedding as TextEmbedding
    from t2iedit.text import TextEncoder as TextEncoder
    from t2iedit.text import Tokens as Tokens
    from t2iedit.wording import Wording as Wording

__version__ = "0.1.0"

_HOMES = {
    "Conditioning": "conditioning",
    "Edit": "edit",
    "EditNotSupported": "errors",
    "File": "edit",
    "Kind": "text",
    "Model": "model",
    "Options": "edit",
    "OutputNotWritable": "errors",
    "Phrase": "edit",
    "Probabilities": "attention",
    "Progress": "pipeline",
    "Prompt": "edit",
    "Request": "request",
    "Result": "request",
    "Run": "edit",
    "Site": "attention",
    "Span": "spans",
    "SpanTruncated": "errors",
    "T2IEditError": "errors",
    "TextEmbedding": "text",
    "TextEncoder": "text",
    "Tokens": "text",
    "UserError": "errors",
    "Wording": "wording",
    "condition": "encoding",
    "denoise": "pipeline",
    "encode": "pipeline",
    "encode_texts": "encoding",
    "generate": "pipeline",
    "hookimpl": "hookspecs",
    "labelled_grid": "plots",
    "locate": "spans",
    "occurrences": "spans",
    "open_model": "opening",
    "read_recipe": "provenance",
    "save_image": "provenance",
    "start": "pipeline",
}

__all__ = [
    "Conditioning",
    "Edit",
    "EditNotSupported",
    "File",
    "Kind",
    "Model",
    "Options",
    "OutputNotWritable",
    "Phrase",
    "Probabilities",
    "Progress",
    "Prompt",
    "Request",
    "Result",
    "Run",
    "Site",
    "Span",
    "SpanTruncated",
    "T2IEditError",
    "TextEmbedding",
    "TextEncoder",
    "Tokens",
    "UserError",
    "Wording",
    "condition",
    "denoise",
    "encode",
    "encode_texts",
    "generate",
    "hookimpl",
    "labelled_grid",
    "locate",
    "occurrences",
    "open_model",
    "read_recipe",
    "save_image",
    "start",
]


def __getattr__(name: str) -> Any:
    """Names come from their modules when first used, so that `t2iedit --help` imports no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"t2iedit.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
