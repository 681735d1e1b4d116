"""Which cases of a data list a command line means."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pipeline.data.checking import all_cases
from pipeline.data.datalist import Case, DataList
from pipeline.errors import SettingsError


def chosen_cases(
    datalist: DataList, *, fold: int | None = None, ids: Sequence[str] = ()
) -> tuple[Case, ...]:
    """Return the validation cases of `fold`, else those named by `ids`, else all of the list.

    Raises:
        SettingsError: An id is not in the list, or is given twice.
        DataError: `split` refuses the fold.
    """
    if fold is not None:
        return datalist.split(fold)[1]
    by_id = {case.id: case for case in all_cases(datalist)}
    unknown = sorted(set(ids) - set(by_id))
    if unknown:
        raise SettingsError(
            f"--cases: expected ids of {datalist.path.name}; found also {', '.join(unknown)}."
        )
    repeated = sorted(case for case, count in Counter(ids).items() if count > 1)
    if repeated:
        raise SettingsError(f"--cases: expected each id once; found again {', '.join(repeated)}.")
    return tuple(by_id[name] for name in ids) if ids else tuple(by_id.values())
