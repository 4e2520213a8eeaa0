"""When and how often something is sent again: one budget a client, tenacity's rules. No gRPC and no waiting here."""

import threading
import time
from collections.abc import Callable
from typing import Final

import tenacity

from longrec.client.connection import Retry
from longrec.errors import DeadlineError, ServerError, UnavailableError

__all__ = ["ENDLESS", "Budget", "Retries", "is_passing"]

# raised by the transport for what the server itself says of a request (INTERNAL and the like), exactly `ServerError`
ENDLESS: Final = (UnavailableError, DeadlineError)


class Budget:
    """So many retries a second, of all calls together: a token bucket that holds a second's worth.

    Args:
        per_second: how many.
        clock: seconds, monotonic.
    """

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second, self._clock = per_second, clock
        self._lock = threading.Lock()
        self._free_at = clock() - 1.0

    def reserve(self) -> float:
        """Take a retry; the seconds to wait until it may start."""
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now - 1.0) + 1.0 / self._per_second
            return max(0.0, self._free_at - now)


def is_passing(error: BaseException, attempts: int, retry: Retry) -> bool:
    """Whether another attempt may help, after so many."""
    return isinstance(error, ENDLESS) or (type(error) is ServerError and attempts < retry.attempts)


class Retries:
    """The retries of one request: backoff with jitter, the budget, and the time left.

    Args:
        retry, budget: of the client.
        seconds: in which it must be answered.
    """

    def __init__(self, retry: Retry, budget: Budget, seconds: float) -> None:
        backoff = tenacity.wait_random_exponential(retry.first_seconds, retry.most_seconds)

        def again(state: tenacity.RetryCallState) -> bool:
            error = state.outcome.exception() if state.outcome else None
            return error is not None and is_passing(error, state.attempt_number, retry)

        def wait(state: tenacity.RetryCallState) -> float:
            return max(backoff(state), budget.reserve())

        stop = tenacity.stop_before_delay(seconds)
        self._rules = tenacity.Retrying(retry=again, wait=wait, stop=stop, reraise=True)
        self._state = tenacity.RetryCallState(self._rules, None, (), {})
        self._rules.begin()

    def wait(self, failure: ServerError) -> float:
        """Seconds before the next attempt.

        Raises:
            ServerError: the failure, where nothing more is tried.
        """
        self._state.set_exception((type(failure), failure, failure.__traceback__))
        seconds = self._rules.iter(self._state)
        assert isinstance(seconds, tenacity.DoSleep)
        self._state.prepare_for_next_attempt()
        return seconds
