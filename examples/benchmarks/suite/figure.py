"""One figure: on which tasks one self-tuned run is better than one plain run, and by how much."""

from .report import OURS, REFERENCE

LIMITS = 0.5, 4.0


def draw(results, path, ours=OURS, peer=REFERENCE):
    """Writes a PNG beside the tables; ``None`` where matplotlib or the runs are missing."""
    pairs = sorted(results.pairs(ours, peer), key=lambda p: p.median)
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return None
    if not pairs:
        return None
    figure = Figure(figsize=(7, 1.2 + 0.26 * len(pairs)), layout="constrained")
    axes = figure.add_subplot()
    for y, pair in enumerate(pairs):
        colour = "tab:blue" if pair.median < 1 else "tab:red"
        low, high = pair.interval
        axes.plot([low, high], [y, y], color=colour, lw=2, alpha=0.5)
        axes.plot(min(max(pair.median, LIMITS[0]), LIMITS[1]), y, "o", color=colour)
        if not LIMITS[0] < pair.median < LIMITS[1]:
            side = "right" if pair.median > 1 else "left"
            text = f"  {pair.median:.3g}  "
            axes.text(LIMITS[pair.median > 1], y, text, ha=side, va="center", fontsize=8)
    axes.axvline(1, color="black", lw=1)
    axes.set_yticks(range(len(pairs)), [p.task for p in pairs], fontsize=8)
    axes.set_xscale("log")
    axes.set_xlim(*LIMITS)
    ticks = (0.5, 0.7, 1, 1.4, 2, 4)
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.grid(axis="x", alpha=0.3)
    lost = sum(p.median > 1 for p in pairs)
    axes.set_title(
        f"Validation loss of one run ({ours}) over one plain run ({peer})\n"
        f"red: worse than the plain run, {lost} of {len(pairs)} tasks",
        fontsize=10,
    )
    figure.savefig(path, dpi=150)
    return path
