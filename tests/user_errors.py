"""What tests of user errors share."""

import pytest

from bsq_jax.core.errors import UserError


def message_of(function, *arguments, **options):
    """The message of the `UserError` that a call raises: one line."""
    with pytest.raises(UserError) as raised:
        function(*arguments, **options)
    message = str(raised.value)
    assert "\n" not in message
    return message
