"""The tensors of a checkpoint against those of the model that it is meant for. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from audiossl.errors import ModelError, one_line

NAMED = 4  # names in an error message

Facts = Mapping[str, tuple[tuple[int, ...], str]]  # name -> shape, type


def check(what: str, expected: Facts, given: Facts) -> None:
    """Raise ModelError unless `given` has just the tensors, shapes and types that are expected.

    what: named in front of the error, such as a file.
    expected: of the model.
    given: of the checkpoint.
    """
    both = [(name, expected[name], given[name]) for name in expected if name in given]
    wrong = {
        "missing": sorted(expected.keys() - given.keys()),
        "unexpected": sorted(given.keys() - expected.keys()),
        "wrong shape": [
            f"{name} {shape} instead of {wanted}"
            for name, (wanted, _), (shape, _) in both
            if shape != wanted
        ],
        "wrong type": [f"{name} {kind}" for name, (_, wanted), (_, kind) in both if kind != wanted],
    }
    refuse(what, wrong)


def refuse(what: str, wrong: Mapping[str, Sequence[str]]) -> None:
    """Raise ModelError that counts and names what is wrong, if anything is.

    wrong: kind of fault -> names of tensors.
    """
    found = [f"{len(names)} {kind}: {some(names)}" for kind, names in wrong.items() if names]
    if found:
        raise ModelError(f"{what}: {'; '.join(found)}")


def some(names: Sequence[str]) -> str:
    """The first few of many names; how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(one_line(name) for name in names[:NAMED]) + more
