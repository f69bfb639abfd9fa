"""What all fuzz tests ask of an error."""

from collections.abc import Iterator
from contextlib import contextmanager

from dreamer.errors import UserError


@contextmanager
def one_line() -> Iterator[None]:
    """Allows an error that the user can fix, in one line, and no other."""
    try:
        yield
    except UserError as error:
        if len(str(error).splitlines()) != 1:
            raise AssertionError(f"not one line: {error!s}") from error
