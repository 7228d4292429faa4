"""OCM's access review: whether an account may do something."""

import asyncio
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

from hyperfleet import errors
from hyperfleet.auth.remote import Client, Unreachable, check_url
from hyperfleet.errors import ConfigurationError, Problem
from hyperfleet.settings.catalogue import Settings

logger = logging.getLogger(__name__)

# Seconds for which an answer is kept, and the maximum number of answers.
REVIEW_FOR = 60
MAX_REVIEWS = 10_000
# Seconds after a failure in which reviews fail at once without asking again.
RETRY_EVERY = 1.0
# How many reviews run at once, in threads of their own: slow ones only delay other reviews.
AT_ONCE = 8
# Seconds before its expiry at which the service's own token is renewed.
MARGIN = 30
# The maximum lifetime of that token in seconds, whatever the server says, even NaN or infinity.
LONGEST = 3600.0

# The account, the action and the type of resource.
Question: TypeAlias = tuple[str, str, str]


class Review:
    """OCM's access review: may this account do this to this type of resource?

    It is ``POST /api/authorizations/v1/access_review``, with a token of the service itself (the client
    credentials grant of RFC 6749, 4.4).

    Raises ConfigurationError if the settings lack credentials or are not safe.
    """

    def __init__(self, settings: Settings) -> None:
        self.url = settings.ocm_base_url.rstrip("/") + "/api/authorizations/v1/access_review"
        self.token_url = settings.ocm_token_url
        check_url("--ocm-base-url", self.url)
        check_url("--ocm-token-url", self.token_url)
        if not settings.ocm_client_id or not settings.ocm_client_secret:
            raise ConfigurationError("--enable-authz needs --ocm-client-id and --ocm-client-secret.")
        self.credentials = {
            "grant_type": "client_credentials",
            "client_id": settings.ocm_client_id,
            "client_secret": settings.ocm_client_secret,
        }
        self.client = Client(settings.ocm_ca_file)
        self.token, self.token_end = "", 0.0
        self.lock = threading.Lock()
        self.threads = ThreadPoolExecutor(AT_ONCE, "access-review")
        self.retry_at = 0.0
        self.answers: dict[Question, tuple[bool, float]] = {}
        self.asking: dict[Question, asyncio.Task[bool]] = {}

    async def allows(self, account: str, verb: str, kind: str) -> bool:
        """Returns whether the account may do this; the answer is kept for a minute.

        Raises Problem (503) if there is no answer.
        """
        question = (account, verb, kind)
        answer, end = self.answers.get(question, (False, 0.0))
        if time.monotonic() < end:
            return answer
        try:
            return await asyncio.shield(self._shared(question))
        except Unreachable as error:
            logger.warning("access review: %s", error)
            raise Problem(errors.NO_REVIEW) from None

    def _shared(self, question: Question) -> asyncio.Task[bool]:
        """Returns a review's task, shared so that a client with many requests does not block others."""
        asking = self.asking.get(question)
        if asking is None:
            asking = self.asking[question] = asyncio.create_task(self._asked(question))

            def done(task: asyncio.Task[bool]) -> None:
                del self.asking[question]
                # All that have waited for it may be gone.
                _ = task.cancelled() or task.exception()

            asking.add_done_callback(done)
        return asking

    async def _asked(self, question: Question) -> bool:
        self._refuse_in_vain()
        loop = asyncio.get_running_loop()
        answer = await loop.run_in_executor(self.threads, self._ask, question)
        # Moved to the end, as the newest.
        self.answers.pop(question, None)
        if len(self.answers) >= MAX_REVIEWS:
            del self.answers[next(iter(self.answers))]
        self.answers[question] = (answer, time.monotonic() + REVIEW_FOR)
        return answer

    def _refuse_in_vain(self) -> None:
        if time.monotonic() < self.retry_at:
            raise Unreachable("there was no answer a moment ago")

    def _json(self, url: str, **options: Any) -> tuple[int, Any]:
        self._refuse_in_vain()
        try:
            return self.client.json("POST", url, **options)
        except Unreachable:
            self.retry_at = time.monotonic() + RETRY_EVERY
            raise

    def _ask(self, question: Question) -> bool:
        account, verb, kind = question
        refused = ""
        body = {"account_username": account, "action": verb, "resource_type": kind}
        for _ in range(2):
            token = self._own_token(refused)
            headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
            status, document = self._json(self.url, json=body, headers=headers)
            if status != 401:
                break
            refused = token
        if status != 200 or not isinstance(document, dict) or "allowed" not in document:
            raise Unreachable(f"{self.url} answers {status} without a decision")
        return document["allowed"] is True

    def _own_token(self, refused: str) -> str:
        """Returns the service's own token; a new one if ``refused`` is the current one."""
        with self.lock:
            if self.token == refused or time.monotonic() >= self.token_end:
                status, document = self._json(self.token_url, data=self.credentials)
                token = document.get("access_token") if isinstance(document, dict) else None
                if status != 200 or not isinstance(token, str):
                    self.retry_at = time.monotonic() + RETRY_EVERY
                    raise Unreachable(f"{self.token_url} answers {status} without a token")
                life = document.get("expires_in")
                life = min(life, LONGEST) if isinstance(life, int | float) else 60
                self.token, self.token_end = token, time.monotonic() + max(1, life - MARGIN)
            return self.token
