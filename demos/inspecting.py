"""The Inspect tab: the prompt as the model's encoders read it, and where the picture looks at a word."""

import html
import threading
from collections.abc import Iterator
from typing import Any

import gradio as gr
from form import PROMPT, Form
from hosting import Host
from painting import Stopped
from pictures import MODEL, QUIET, Stops, told_report
from telling import told
from words import phrases

from t2iedit import Progress
from t2iedit.charts import inspection_chart, overlay
from t2iedit.errors import InvalidRequest
from t2iedit.inspection import EncoderFacts, TokenFacts, attention_map, inspect

STYLE = (
    "display:inline-block;border:1px solid currentColor;border-radius:.5em;padding:.15em .5em;"
    "margin:.15em;text-align:center;line-height:1.25"
)
EDITED = "background:#b2182b33;border-width:2px;"


class InspectTab:
    """Its components, and what its buttons do; the request is the one of the controls."""

    def __init__(self, host: Host, form: Form, stops: Stops) -> None:
        self.host, self.form, self.stops = host, form, stops
        start = gr.Button("Inspect", variant="primary", elem_id="inspect")
        tokens = gr.HTML(elem_id="tokens")
        report = gr.Markdown()
        chart = gr.Image(
            label="How alike the tokens' embeddings are (red: alike, blue: opposed)",
            format="png",
            interactive=False,
            elem_id="chart",
        )
        start.click(
            self.inspect,
            form.inputs,
            [tokens, report, chart],
            concurrency_id=MODEL,
            concurrency_limit=1,
            api_visibility="private",
        )
        word = gr.Dropdown(
            phrases(PROMPT),
            value=None,
            label="Where does the picture look at",
            info="The mean cross-attention of these words over all layers and steps.",
            elem_id="word",
        )
        with gr.Row():
            look = gr.Button("Show on the picture", elem_id="look")
            cancel = gr.Button("Cancel", variant="stop")
        heat = gr.ImageSlider(
            label="The picture (left), and in red where it looks (right)",
            format="png",
            interactive=False,
            elem_id="heat",
        )
        look.click(
            self.look,
            [word, *form.inputs],
            heat,
            concurrency_id=MODEL,
            concurrency_limit=1,
            api_visibility="private",
        )
        cancel.click(stops.cancel, None, None, **QUIET)
        form.prompt.change(_offered, [form.prompt, word], word, **QUIET)

    def inspect(self, *values: Any) -> tuple[Any, ...]:
        """Chips, the report and the matrices."""
        with told():
            request = self.form.asked(values)
            found = inspect(self.host.models.opened(request.model), request)
            chips = "".join(_chips(facts) for facts in found.encoders)
            return chips, told_report(found.report), inspection_chart(found)

    def look(self, visitor: gr.Request, word: str | None, *values: Any) -> Iterator[Any]:
        """The picture, and it with the heat over it."""
        stop = self.stops.begin(visitor)
        try:
            with told():
                if not word:
                    raise InvalidRequest("choose a word of the prompt first")
                request = self.form.asked(values)
                model = self.host.models.opened(request.model)
                image, heat = attention_map(model, request, word, on_step=_stopping(stop))
                yield image, overlay(image, heat)
        except Stopped:
            yield gr.skip()
        finally:
            self.stops.end(visitor)


def _stopping(stop: threading.Event) -> Any:
    def on_step(progress: Progress) -> None:
        if stop.is_set():
            raise Stopped

    return on_step


def _offered(prompt: str, word: str | None) -> Any:
    choices = phrases(prompt)
    return gr.update(choices=choices, value=word if word in choices else None)


def _chips(facts: EncoderFacts) -> str:
    chips = "".join(_chip(token) for token in facts.tokens)
    return f"<p><b>{html.escape(facts.encoder)}</b></p><div>{chips}</div>"


def _chip(token: TokenFacts) -> str:
    """Piece, number and norm; the nearest pieces of the vocabulary as its title."""
    near = ", ".join(f"{piece} ({cosine:.2f})" for piece, cosine in token.nearest)
    norm = f"{token.norm_before:.2f}"
    if token.edited:
        norm += f" &rarr; {token.norm_after:.2f}<br>{100 * token.change:.1f}&#8239;% changed"
    title = html.escape(f"nearest in the vocabulary: {near}", quote=True)
    return (
        f'<span style="{STYLE}{EDITED if token.edited else ""}" title="{title}">'
        f"<b>{html.escape(token.piece)}</b><br><small>{token.id}<br>{norm}</small></span>"
    )
