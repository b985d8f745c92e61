"""What went wrong, as one sentence for a visitor; the whole of it goes to the host's log."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import gradio as gr
from names import pathless

from t2iedit import Edit, T2IEditError
from t2iedit.plugins import installed

log = logging.getLogger("t2iedit.demo")


@contextmanager
def told() -> Iterator[None]:
    """Turns whatever is raised into a `gr.Error` of one sentence."""
    try:
        yield
    except gr.Error:
        raise
    except T2IEditError as error:
        raise gr.Error(
            pathless(str(error)), title="That cannot be done", print_exception=False
        ) from error
    except Exception as error:
        log.exception("a request failed")
        raise gr.Error(
            pathless(sentence(error)), title="That failed", print_exception=False
        ) from error


def sentence(error: Exception) -> str:
    """What failed, with the plugin's name if it is an edit's own code."""
    what = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    edit = culprit(error.__traceback__)
    if edit is None:
        return f"this failed with {what}"
    source = installed().source(edit.name) or "a plugin"
    return f'the edit "{edit.name}" of {source} failed with {what}'


def culprit(trace: TracebackType | None) -> type[Edit] | None:
    """The edit in whose method an error was raised, if it was in one."""
    found = None
    while trace is not None:
        held = trace.tb_frame.f_locals
        for owner in (held.get("cls"), type(held.get("self"))):
            if isinstance(owner, type) and issubclass(owner, Edit):
                found = owner
        trace = trace.tb_next
    return found
