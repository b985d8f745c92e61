"""A component: the prompt's words as buttons, which make the phrases of an option."""

from typing import Any

import gradio as gr
from words import held, picked, words

# Nothing of a visitor's may go into a template: Gradio evaluates what comes of it as JavaScript. And no prop's name may
# stand in quotes in the script: Gradio takes it for an event's then.
TEMPLATE = '<div class="head"></div><div class="info"></div><div class="words" role="group"></div>\
<div class="phrases" aria-live="polite"></div>'
STYLE = """
.head {font-weight: var(--block-title-text-weight); color: var(--block-title-text-color);}
.info {color: var(--block-info-text-color); font-size: var(--text-xs); margin-bottom: 4px;}
.words, .phrases {display: flex; flex-wrap: wrap; gap: 4px;}
.phrases {margin-top: 6px;}
button {font-family: inherit; border: 1px solid var(--border-color-primary); border-radius: 6px; padding: 3px 8px; cursor: pointer;
  background: var(--input-background-fill); color: var(--body-text-color); font-size: var(--text-sm);}
button:hover {border-color: var(--color-accent);}
button:focus-visible {outline: 2px solid var(--color-accent); outline-offset: 1px;}
.words button[aria-pressed=true] {background: var(--color-accent); border-color: var(--color-accent); color: white;}
.phrases button {font-family: inherit; border-radius: 999px; background: var(--color-accent-soft);}
.phrases button.absent {border-style: dashed; text-decoration: line-through;}
"""
SCRIPT = """
const part = (name) => element.querySelector('.' + name);
part('head').textContent = props.caption;
part('info').textContent = props.hint;
part('words').setAttribute('aria-label', props.caption);
const fill = (name, items, dress, event) => {
  const row = part(name);
  while (row.children.length > items.length) row.lastChild.remove();
  items.forEach((item, index) => {
    let button = row.children[index];
    if (!button) {
      button = document.createElement('button');
      button.type = 'button';
      button.addEventListener('click', () => trigger(event, {index}));
      row.append(button);
    }
    dress(button, item);
  });
};
const draw = () => {
  fill('words', props.chips, (button, [text, on]) => {
    button.textContent = text;
    button.setAttribute('aria-pressed', on);
  }, 'pick');
  fill('phrases', props.value || [], (button, phrase) => {
    button.textContent = phrase + ' ×';
    button.className = props.lost.includes(phrase) ? 'absent' : '';
    button.title = button.className ? 'not in the prompt; click to take it away' : 'click to take it away';
  }, 'drop');
};
draw();
watch(Object.keys(props), draw);
"""


def word_picker(
    prompt: str, value: Any, *, caption: str, hint: str, many: bool, **rest: Any
) -> gr.HTML:
    """The component for this prompt's words. Its value is a list of phrases, of one at most unless there may be `many`."""
    # No class of its own: Gradio writes a file of stubs beside each subclass of a component.
    return gr.HTML(
        **state(prompt, listed(value)), caption=caption, hint=hint, many=many, html_template=TEMPLATE,
        css_template=STYLE, js_on_load=SCRIPT, apply_default_css=False, container=True, padding=True, **rest,
    )  # fmt: skip


def showing(picker: gr.HTML, prompt: str, value: Any) -> Any:
    """An update to this prompt's words and these phrases."""
    return gr.update(**(picker.props | state(prompt, listed(value))))


def connect(picker: gr.HTML, prompt: gr.Textbox, **quiet: Any) -> None:
    """Let clicks on words and phrases act, and keep up with what is typed."""
    many = picker.props["many"]

    def pick(text: str, value: Any, event: gr.EventData) -> Any:
        number, chosen = _number(event, len(words(text))), listed(value)
        chosen = chosen if number is None else picked(text, chosen, number, many=many)
        return showing(picker, text, chosen)

    def drop(text: str, value: Any, event: gr.EventData) -> Any:
        number, chosen = _number(event, len(listed(value))), listed(value)
        return showing(picker, text, [p for place, p in enumerate(chosen) if place != number])

    def follow(text: str, value: Any) -> Any:
        return showing(picker, text, value)

    inputs: list[Any] = [prompt, picker]
    picker.pick(pick, inputs, picker, **quiet)
    picker.drop(drop, inputs, picker, **quiet)
    prompt.change(follow, inputs, picker, **quiet)


def state(prompt: str, phrases: list[str]) -> dict[str, Any]:
    """What the buttons show: each word and whether it is in a phrase, and the phrases that do not stand there."""
    runs = [held(prompt, phrase) for phrase in phrases]
    chosen = {number for run in runs for number in run}
    spans = enumerate(words(prompt))
    return {
        "value": phrases,
        "chips": [[prompt[s.start : s.end], number in chosen] for number, s in spans],
        "lost": [phrase for phrase, run in zip(phrases, runs, strict=True) if not run],
    }


def listed(value: Any) -> list[str]:
    """The phrases of an option's value, or of what a browser sent."""
    if isinstance(value, str):
        return [value] if value else []
    return [phrase for phrase in value or [] if isinstance(phrase, str)]


def _number(event: gr.EventData, count: int) -> int | None:
    number = (event._data or {}).get("index")
    return number if isinstance(number, int) and 0 <= number < count else None
