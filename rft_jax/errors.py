"""What a user can fix: one class, and the few that some caller handles apart from the others.

A message names the thing, says what was found, what was expected, and the remedy.
"""

import difflib
from collections.abc import Iterable

LONGEST = 2000
"""Characters of a message; it may repeat what a user gave, which may be of any length."""


class UserError(ValueError):
    """The work cannot be done as asked; the command line prints the message and ends with 2."""

    def __str__(self) -> str:
        """The message in one line, without the middle of one that is too long."""
        text = "\\n".join(super().__str__().splitlines())
        half = LONGEST // 2
        return text if len(text) <= LONGEST else f"{text[:half]} ... {text[-half:]}"


class TemporaryError(UserError):
    """The machine cannot do now what is right as asked: a disk is full, or another process is at
    work here. The command line ends with 75, after which launchers start again."""


class ConfigError(UserError):
    """A setting, an option or an experiment file is wrong."""


class DataError(UserError):
    """A file of questions, outputs or metrics cannot be read."""


class ModelError(UserError):
    """A published model, its tokenizer or its chat template cannot serve."""


class VerifierError(UserError):
    """A verifier cannot be loaded, or its worker cannot be started."""


class CheckpointError(UserError):
    """A checkpoint, or the host state in it, is not one this run can resume from."""


def out_of_memory(error: BaseException) -> bool:
    """Whether the host or a device had no memory left; jax, which reports the latter, is not
    loaded here."""
    says = ("RESOURCE_EXHAUSTED", "Out of memory")
    from_jax = type(error).__name__ == "JaxRuntimeError"
    return isinstance(error, MemoryError) or (from_jax and any(x in str(error) for x in says))


def suggest(name: str, names: Iterable[str]) -> str:
    """The end of a message: `; did you mean NEAREST?`, or a full stop when no name is near."""
    nearest = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean {nearest[0]}?" if nearest else "."


def suggest_or_list(name: str, names: Iterable[str]) -> str:
    """The end of a message: `suggest`, and where no name is near, all of them."""
    known = list(names)
    near = suggest(name, known)
    return near if near != "." or not known else f": there are {', '.join(known)}."
