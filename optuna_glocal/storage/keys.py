"""Keys of the user attributes that a trial leaves."""

from __future__ import annotations

VERSION = 1


RECORD, FORECAST, TRAJECTORY, SCHEDULE, REASON = (
    "glocal:record",
    "glocal:forecast",
    "glocal:trajectory",
    "glocal:schedule",
    "glocal:reason",
)
