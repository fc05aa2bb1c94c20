"""Credentials of upstream servers, and secrets of their webhooks: files of the operator, read for each use.

No manifest, log or error has them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from ipnext.errors import Unavailable

LARGEST_BYTES = 2**20
_FORM = TypeAdapter(dict[str, Annotated[str, Field(min_length=1, pattern=r"^[\x20-\x7e]+$")]])


def read_credentials(file: Path | None, setting: str = "IPNEXT_SOURCE_CREDENTIALS_FILE") -> Mapping[str, str]:
    """Return URL of a server -> value of the header `Authorization`, or the secret; none without a file.

    Raises Unavailable if it can't be read, others than its user may read it, or it has another form.
    """
    if file is None:
        return {}
    try:
        if file.stat().st_mode & 0o077:
            msg = f"{file} may be read by others than its user; `chmod 600` it ({setting})"
            raise Unavailable(msg)
        with file.open("rb") as stream:
            return _FORM.validate_json(stream.read(LARGEST_BYTES))
    except OSError as error:
        msg = f"{file} can't be read: {error.strerror} ({setting})"
        raise Unavailable(msg) from error
    except ValidationError:  # its text has parts of the file
        msg = f'{file} is not JSON of the form {{"URL": "TEXT"}} ({setting})'
        raise Unavailable(msg) from None
