"""The results sections of the plugins' READMEs, from what the benchmarks wrote into `results/`.

    python benchmarks/tables.py

Each README ends with its results; what was not measured yet is left out. Run it after a benchmark, and commit both.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import RESULTS

ROOT = Path(__file__).parent.parent
HEADING = "\n## Results\n"
Row = dict[str, Any]


def rows_of(name: str) -> list[Row]:
    path = RESULTS / f"{name}.json"
    kept = json.loads(path.read_text()) if path.exists() else []
    return kept if isinstance(kept, list) else kept["rows"]


def table(
    rows: Sequence[Row], names: Sequence[str], metrics: Sequence[str], head: str, of: str = ""
) -> str:
    """A line for each name, without its group if that is the head, a column for each metric `of` something; shares in per cent."""
    found = {(row["name"], row["metric"]): row for row in rows}
    lines = [f"| {head} | {' | '.join(metrics)} |", f"|---{'|---' * len(metrics)}|"]
    for name in names:
        cells = [cell(found.get((name, metric + of))) for metric in metrics]
        label = name.partition(": ")[2] if head else name
        lines.append(f"| {label or name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(row: Row | None) -> str:
    if row is None or not row["n"]:
        return ""
    sign = "+" if "more than" in row["metric"] else ""
    value, low, high = (100 * row[key] for key in ("value", "low", "high"))
    return f"{value:{sign}.0f} % ({low:.0f} to {high:.0f})"


def composition() -> str:
    rows = rows_of("composition")
    if not rows:
        return ""
    arms = list(dict.fromkeys(row["name"].partition(":")[0] for row in rows))
    parts = [
        "`python benchmarks/composition.py`, on the bundled model: options chosen on one set of prompts, reported on another; 95 % intervals."
        " `right`: what was asked for and nothing else. `ceiling`: drawn scenes through the model's autoencoder."
    ]
    metrics = ("all present", "bound right", "right", "dropped", "leaked", "right, more than plain")
    for objects in ("two objects", "three objects", "one object"):
        n = next(row["n"] for row in rows if row["name"].endswith(f": {objects}"))
        names = [f"{arm}: {objects}" for arm in arms]
        text = table(rows, names, metrics, f"{objects}, n = {n}")
        for arm in arms:
            text = text.replace(f"| {objects} |", f"| {arm} |", 1)
        parts.append(text)
    slower = [row for row in rows if row["metric"].startswith("time per image")]
    times = ", ".join(f"{row['name']} {row['value']:.2f}" for row in slower)
    parts.append(f"Time per image over plain's, in batches of 15: {times}.")
    parts.append("![The same prompts under every way](../../benchmarks/results/composition.png)")
    return "\n\n".join([*parts, *why()])


def why() -> list[str]:
    rows = rows_of("composition-why")
    if not rows:
        return []
    lines = ["| | | value | 95 % |", "|---|---|---|---|"]
    lines += [
        f"| {r['name']} | {r['metric']} | {r['value']:.2f} | {r['low']:.2f} to {r['high']:.2f} |"
        for r in rows
    ]
    return [
        "Why (`python benchmarks/composition_why.py`): how alike the concepts are, and where they are looked for.",
        "\n".join(lines),
        "![Attention to each concept](../../benchmarks/results/composition-why.png)",
    ]


def leakage() -> str:
    said = (
        "`python benchmarks/leakage.py`, on the bundled model: LoRAs over-fitted on four pictures; 95 % intervals. `leaked`: what all"
        " pictures shared is in a picture whose prompt does not ask for it; `followed`: what the prompt asks for besides; `kept`: the"
        " style or shape that was learned. `mixed`: two LoRAs, both halves kept."
    )
    kinds = {
        "leakage": "Over-fitted hard: attention and convolutions.",
        "leakage-gentle": "Over-fitted gently (`--overfit gentle`): attention alone, at a quarter of the rate.",
    }
    return "\n\n".join([said, *(part for kind in kinds.items() for part in leaks(*kind))])


def leaks(stem: str, title: str) -> list[str]:
    """All LoRAs in every way, each of them in the ways that matter, and areas."""
    rows = rows_of(stem)
    *groups, pooled = dict.fromkeys(row["name"].partition(":")[0] for row in rows)
    metrics = ("leaked", "followed", "kept")
    names = [row["name"] for row in rows if row["metric"] == "kept"]
    own = [row for row in rows if row["name"].startswith(f"{pooled}:")]
    parts = [title, table(own, [n for n in names if n.startswith(pooled)], metrics, pooled)]
    some = [f"{group}: {way}" for group in groups for way in WAYS]
    parts.append(table(rows, some, metrics, ""))
    parts.append(
        "\n".join(
            f"- {row['name'].partition(': ')[2]}, {row['metric']}: {row['value']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"
            for row in own
            if "area" in row["metric"]
        )
    )
    pictures = {"Curves": stem, "Pictures": f"{stem}-pictures"}
    return [
        *parts,
        *(f"![{what}](../../benchmarks/results/{n}.png)" for what, n in pictures.items()),
    ]


WAYS = ("LoRA", "scale 0.5", "DECOR 0.5", "DECOR 1", "negative prompt")


def overhead(edit: str) -> str:
    rows = [row for row in rows_of("overhead") if f": {edit}" in row["name"] and row["n"]]
    rows = [row for row in rows if row["metric"].startswith(("share", "step over"))]
    if not rows:
        return ""
    lines = ["| | | value | 95 % |", "|---|---|---|---|"]
    lines += [
        f"| {row['name']} | {row['metric']} | {figure(row['value'], row)} | {figure(row['low'], row)} to {figure(row['high'], row)} |"
        for row in rows
    ]
    return "\n\n".join(
        [
            "`python benchmarks/overhead.py`, on one core; SD 1.5 and SDXL in their true size at 512, with random weights.",
            "\n".join(lines),
        ]
    )


def figure(value: float, row: Row) -> str:
    return f"{value:.2%}" if row["metric"].startswith("share") else f"{value:.2f}"


def memory() -> str:
    """A table for each architecture that was measured."""
    parts = []
    for path in sorted(RESULTS.glob("memory-*.json")):
        kept = json.loads(path.read_text())
        rows = [row for row in kept["rows"] if row["metric"].endswith(SHARE) and row["n"]]
        metrics = list(dict.fromkeys(row["metric"] for row in rows))
        names = list(dict.fromkeys(row["name"] for row in rows))
        found = {(row["name"], row["metric"]): row for row in rows}
        of = kept["settings"]
        title = f"{of['architecture']} at {of['size']}, {kept['machine']['processor']}"
        lines = [
            f"| {title} | {' | '.join(m.removesuffix(SHARE) for m in metrics)} |",
            f"|---{'|---' * len(metrics)}|",
        ]
        for name in names:
            own = [found.get((name, metric)) for metric in metrics]
            cells = [r and f"{r['value']:.2f} ({r['low']:.2f} to {r['high']:.2f})" for r in own]
            lines.append(f"| {name} | {' | '.join(text or '' for text in cells)} |")
        parts.append("\n".join(lines))
    if not parts:
        return ""
    said = (
        "`python benchmarks/memory.py`: shares of the same UNet in 16 bits, random weights, medians and extremes of repeats, each"
        " in a process of its own."
    )
    return "\n\n".join([said, *parts])


def personalization() -> str:
    rows = rows_of("personalization")
    if not rows:
        return ""
    stage, more = ", stage 1 alone", ", more than plain"
    pooled, kinds = [], []
    for name in names_with(rows, "followed"):
        (kinds if ": " in name else pooled).append(name)
    metrics = ("identity", "identified", "followed", "right", "CLIP-T", "CLIP-I")
    n = next(r["n"] for r in rows if r["metric"] == "followed")
    parts = [
        "`python benchmarks/personalization.py --seeds 1`, on the bundled model; preset `shapes`, 95 % intervals. `identity`: how like the concept"
        " the most similar object is; `identified`: clearly that; `followed`: what the prompt asks for besides; `right`: both. `drawn as asked`:"
        " scenes through the model's autoencoder.",
        table(rows, pooled, metrics, f"both stages, n = {n}"),
        "New shapes and new textures apart, both stages:",
        table(rows, kinds, metrics[:4], ""),
        "The vectors alone, before the second stage:",
        table(rows, names_with(rows, "followed" + stage), metrics, "", stage),
        "More than plain inversion, the same pictures, prompts and seeds, both stages; intervals over concepts:",
        table(rows, names_with(rows, "followed" + more), metrics[:4], "", more),
    ]
    costs = [r for r in rows if r["metric"].startswith("step over")]
    parts.append(
        "A step of stage 1 over plain inversion's: "
        + ", ".join(f"{r['name']} {r['value']:.2f}" for r in costs[1:])
        + "."
    )
    parts.append("![Concepts in new places](../../benchmarks/results/personalization.png)")
    return "\n\n".join([*parts, *tuned()])


def names_with(rows: Sequence[Row], metric: str) -> list[str]:
    return list(dict.fromkeys(row["name"] for row in rows if row["metric"] == metric))


def tuned() -> list[str]:
    path = RESULTS / "personalization-choice.json"
    if not path.exists():
        return []
    kept = json.loads(path.read_text())
    scores = [
        f"- {what}: " + ", ".join(f"{point} {score:.3f}" for point, score in of.items())
        for what, of in kept["scores"].items()
    ]
    return [
        "What the preset's numbers were chosen by (`personalization_tuning.py`, mean of `identified` and `followed` on the tuning concepts):",
        "\n".join(scores),
    ]


def latency() -> str:
    """A table for each architecture that was timed, and how far the machine lets eight bits go."""
    parts = []
    for path in sorted(RESULTS.glob("latency-*.json")):
        kept = json.loads(path.read_text())
        of, rows = kept["settings"], kept["rows"]
        found = {(row["name"], row["metric"]): row for row in rows}
        where = f"{of['architecture']} at {of['size']}, batch {of['batch']}, {of['dtype']}, {of['threads']} thread(s) of {kept['machine']['processor']}"
        lines = [f"| {where} | {' | '.join(TIMES)} |", f"|---{'|---' * len(TIMES)}|"]
        for name in dict.fromkeys(row["name"] for row in rows if row["metric"] == TIMES[0]):
            cells = [spread(found.get((name, metric))) for metric in TIMES]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
        best = [row for row in rows if row["metric"].startswith("times the best")]
        told = [f"{row['name']} {spread(row)} {row['metric']}" for row in best]
        most = found.get(("roofline", "times floating point at most"))
        told += [f"arithmetic alone allows W8A8 {most['value']:.2f} times at most"] if most else []
        parts.append("; ".join(told) + ".")
    if not parts:
        return ""
    said = "`python benchmarks/latency.py`: one UNet step, random weights, each in turn with the first; medians and extremes."
    return "\n\n".join([said, *parts])


TIMES = ("seconds a step", "times the reference")


def spread(row: Row | None) -> str:
    if row is None:
        return ""
    if not row["n"]:
        return f"not measured: {row['why']}"
    return f"{row['value']:.2f} ({row['low']:.2f} to {row['high']:.2f})"


def quantization() -> str:
    parts = []
    kinds = {
        "quantization-shapes": "The bundled model.",
        "quantization-shapes-turbo": "Its few-step sibling, four steps.",
        "quantization-shapes-outlier": "The bundled model with text channels appended that are 800 in BOS rows and that nothing listens to, simulated.",
    }
    for name, title in kinds.items():
        if rows := rows_of(name):
            parts += [title, quantised_rows(rows)]
            edits = [row for row in rows if " with " in row["name"]]
            if edits:
                parts.append(
                    "; ".join(f"{r['name']}: {r['metric']} {plain(r)}" for r in edits) + "."
                )
    if not parts:
        return ""
    said = (
        "`python benchmarks/quantization.py`: pictures against those of the floating-point model, the same prompts and seeds. SSIM: median;"
        " `prompts right`: by the detector, in per cent, and its paired difference; times are taken in turn with the floating-point model."
    )
    return "\n\n".join([said, *parts])


COLUMNS = (
    "bits of weights", "bits of inputs", "SSIM", "SQNR in dB", "prompts right", "prompts right, less whole",
    "bytes", "times as fast", "agreement with simulation in dB",
)  # fmt: skip


def quantised_rows(rows: Sequence[Row]) -> str:
    found = {(row["name"], row["metric"]): row for row in rows}
    names = [n for n in dict.fromkeys(row["name"] for row in rows) if " with " not in n]
    metrics = [m for m in COLUMNS if any(row["metric"] == m for row in rows)]
    lines = [f"| | {' | '.join(metrics)} |", f"|---{'|---' * len(metrics)}|"]
    for name in names:
        cells = [plain(found.get((name, metric))) for metric in metrics]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plain(row: Row | None) -> str:
    if row is None or not row["n"]:
        return ""
    if row["metric"].startswith("prompts right"):
        return cell(row | {"metric": row["metric"].replace("less", "more than")})
    if row["metric"] == "bytes":
        return f"{row['value'] / 1e6:.1f} MB"
    return f"{row['value']:.3f}" if "SSIM" in row["metric"] else f"{row['value']:.3g}"


SHARE = ", share of 16 bits"
SECTIONS: dict[str, Sequence[Callable[[], str]]] = {
    "plugins/t2iedit_zero/README.md": (composition, lambda: overhead("t2i_zero")),
    "plugins/t2iedit_decor/README.md": (leakage, lambda: overhead("decor")),
    "plugins/t2iedit_context/README.md": (personalization,),
    "plugins/t2iedit_mixdq/README.md": (quantization, latency, memory),
}


def main() -> None:
    for name, sections in SECTIONS.items():
        path = ROOT / name
        text = path.read_text(encoding="utf-8").partition(HEADING)[0].rstrip("\n")
        found = [part for section in sections if (part := section())]
        ending = HEADING + "\n" + "\n\n".join(found) + "\n" if found else ""
        path.write_text(f"{text}\n{ending}", encoding="utf-8")
        print(f"{name}: {len(found)} of {len(sections)} results")


if __name__ == "__main__":
    main()
