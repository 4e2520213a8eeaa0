"""Groups of an evaluation as pictures: bars of the means with their intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from longrec.training.evaluation_report import GROUP_METRICS, Group

__all__ = ["plot_groups"]


def plot_groups(figures: Mapping[str, Sequence[Group]], folder: Path) -> list[Path]:
    """Draw a PNG a grouping, a panel a metric; groups without users are left out.

    Args:
        figures: of `evaluation_report.group_figures`.
        folder: made if need be.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for by, groups in figures.items():
        shown = [group for group in groups if group.users]
        figure = Figure(figsize=(10, 1.4 + 0.42 * len(shown)), dpi=120, layout="constrained")
        first = None
        for place, name in enumerate(GROUP_METRICS):
            axes = figure.add_subplot(1, len(GROUP_METRICS), place + 1, xlabel=name.upper(), sharey=first)
            intervals = [group.metrics[name] for group in shown]
            errors = [[one.mean - one.low for one in intervals], [one.high - one.mean for one in intervals]]
            axes.barh(range(len(shown)), [one.mean for one in intervals], xerr=errors, color="tab:blue", capsize=3)
            axes.set_xlim(left=0)
            if first is None:
                axes.set_yticks(range(len(shown)), [f"{group.name} ({group.users:,})" for group in shown])
                axes.invert_yaxis()
                first = axes
            else:
                axes.tick_params(labelleft=False)
        figure.suptitle(f"by {by}: mean and 95% interval; number of users in brackets", fontsize=10)
        paths.append(folder / f"{by}.png")
        figure.savefig(paths[-1])
    return paths
