"""What several commands print: quiet libraries, progress on stderr, tables and JSON on stdout."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2iedit.pipeline import Progress


def silence_libraries() -> None:
    """No chatter from the libraries: what matters to a user t2iedit says itself."""
    import logging
    import warnings

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("diffusers", "transformers", "huggingface_hub", "accelerate"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    import transformers

    transformers.utils.logging.set_verbosity(logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    import diffusers

    diffusers.utils.logging.set_verbosity(logging.CRITICAL)
    diffusers.utils.logging.disable_progress_bar()


def progress_bar(
    total: int, description: str
) -> "tuple[Callable[[Progress], None], Callable[[], None]]":
    """A bar over `total` denoising steps for anything over a second: one function to move it, one to close it."""
    from tqdm import tqdm

    bar = tqdm(total=total, desc=description, delay=1, disable=None, leave=False, unit="step")

    def advance(progress: "Progress") -> None:
        bar.update(1)

    return advance, bar.close


def warn(sentences: Sequence[str]) -> None:
    for sentence in dict.fromkeys(sentences):
        print(f"t2iedit: note: {sentence}", file=sys.stderr)


def print_json(value: Any) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    # Half a character, which JSON can hold and no terminal shows.
    print(text.encode(errors="backslashreplace").decode())


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Columns in line; the last one wraps nowhere."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())
