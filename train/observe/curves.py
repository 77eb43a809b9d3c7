"""The curves of a run as a picture, which is drawn again at every checkpoint."""

from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path


class Curves:
    """Every term of the objective over the steps, of training and of validation.

    Points are held as numbers of 8 bytes, so that drawing reads no file.
    """

    def __init__(self, terms: Iterable[str]):
        self._points = {f"{prefix}{term}": (array("q"), array("d")) for term in terms for prefix in ("", "eval_")}

    def add(self, entry: Mapping[str, float | int | None]) -> None:
        """Takes the points of an entry of the metrics; values that are null have none."""
        for name, (steps, values) in self._points.items():
            if (value := entry.get(name)) is not None:
                steps.append(int(entry["step"] or 0))
                values.append(value)

    def draw(self, path: Path) -> None:
        """Draws the curves into a PNG file, which is replaced at once."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4.5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot(xlabel="step", ylabel="mean over targets (of a loss: nats)")
        for name, (steps, values) in self._points.items():
            if steps:
                # Validation has few points, each of which should be seen.
                axes.plot(steps, values, label=name, linewidth=1, marker="." if name.startswith("eval_") else None)
        if axes.lines:
            axes.legend()
        axes.grid(alpha=0.3)
        path.parent.mkdir(exist_ok=True)
        partial = path.with_name(f".{path.name}")
        figure.savefig(partial, dpi=120)
        partial.replace(path)
