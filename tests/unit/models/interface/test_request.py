"""Cancel tokens: a token is cancelled by itself or by its parent, a batch's once all of its tokens are."""

from __future__ import annotations

import pytest

from models.interface.request import (
    NEVER_CANCELLED,
    AllCancelled,
    AllCancelledError,
    CancelToken,
    NeverCancelled,
)


def test_a_token_is_cancelled_once_cancel_is_called() -> None:
    token = CancelToken()
    token.raise_if_cancelled()

    token.cancel()

    assert token.cancelled
    with pytest.raises(AllCancelledError):
        token.raise_if_cancelled()


def test_a_parent_cancels_its_children_and_a_child_does_not_cancel_its_parent() -> None:
    parent = CancelToken()
    one, other = CancelToken(parent), CancelToken(parent)

    one.cancel()
    assert (parent.cancelled, one.cancelled, other.cancelled) == (False, True, False)
    parent.cancel()
    assert other.cancelled


def test_the_token_of_a_batch_is_cancelled_once_all_its_tokens_are() -> None:
    tokens = [CancelToken(), CancelToken()]
    batch = AllCancelled(tokens)

    tokens[0].cancel()
    assert not batch.cancelled
    tokens[1].cancel()
    assert batch.cancelled


def test_work_without_a_client_is_never_cancelled() -> None:
    token = NeverCancelled()
    token.cancel()

    assert not token.cancelled
    assert not AllCancelled([CancelToken(), NEVER_CANCELLED]).cancelled
