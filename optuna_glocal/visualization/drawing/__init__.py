"""What the plots share: a figure as data, its parts, and the two libraries that draw it.

``figure`` is the figure before it is drawn, and the plotly backend. ``panel`` has traces, error
bars and titles of one panel; ``marks`` the markers and axes of a study's trials; ``study_path``
reads a study as points of one space. ``matplotlib_backend`` and ``matplotlib_traces`` draw the
same figure with matplotlib.
"""
