"""Errors about the files of a data set that cannot be read: all of them are named, with what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from minifast.data.images.conversion import REMEDY, UnreadableImageError, ValueRangeError
from minifast.data.images.value_range import Values, sample_values, suggest_range
from minifast.errors import DataError
from minifast.utils.checks import shortlist
from minifast.utils.files import replacing

SHOWN = 10  # unreadable images that an error names
LIST_FILE = "unreadable_images.txt"  # in the working directory, for more of them


def unreadable_error(names: Sequence[str], errors: Mapping[int, Exception], first: UnreadableImageError) -> DataError:
    """Return the error for all files that cannot be read.

    Args:
        names: the files of the data set.
        errors: the errors of those that cannot be decoded, by their positions.
        first: the error that was raised.
    """
    bad = [Path(names[i]) for i, error in errors.items() if not isinstance(error, ValueRangeError)]
    if len(bad) < 2:
        return DataError(str(first), cli_hint="Or leave it out with --on-bad-image skip.")
    listed = ""
    if len(bad) > SHOWN:
        try:
            with replacing(Path(LIST_FILE)) as file:
                file.write_text("".join(f"{name}\n" for name in bad), encoding="utf-8", errors="surrogateescape")
            listed = f" All are listed in {LIST_FILE}."
        except OSError:
            pass
    reason = str(first).removesuffix(REMEDY).rstrip()
    return DataError(
        f"{len(bad)} of {len(names)} images cannot be read: {shortlist(bad, SHOWN)}.{listed} The first: {reason}",
        hint="Replace or remove all of them; to leave them out, pass on_bad_image='skip'.",
        cli_hint="Replace or remove all of them, or pass --on-bad-image skip.",
    )


def with_range(error: ValueRangeError, names: Sequence[str]) -> DataError:
    """Return the error of an image of a data set with the range of the values of all its files, or of a sample."""
    values = [*sample_values(names), Values(*error.values, 0, 0)]  # the image may be outside of the sample
    return DataError(f"{error} {suggest_range(names, values)}")
