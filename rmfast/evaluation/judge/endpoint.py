"""A judge behind an OpenAI-compatible endpoint (POST {url}/chat/completions).

The client is the `openai` package: over plain httpx it brings the error types, the reading of answers and the handling
of headers that every server of the kind is tested against. Retries are ours, so that each try has a time-out
(also against a server that trickles), waits for its turn under the rate limit, and is counted.
"""

import asyncio
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import openai
from openai.types.chat import ChatCompletion

from rmfast.errors import RunError, UserError
from rmfast.evaluation.judge.backend import Answer, Failure, Request, Sampling
from rmfast.evaluation.judge.pace import Pace
from rmfast.evaluation.judge.problem import Problem, advice, explain

START_MISSES = 3  # questions without an answer before the first answer
LONGEST_BACK_OFF = 60.0  # seconds
LONGEST_WAIT = 600.0  # seconds that a server may ask us to wait


class Endpoint:
    """A backend (see `rmfast.evaluation.judge.backend`).

    Until the first answer comes, questions go one at a time, so that a wrong address costs one question. A run of
    `max(3, concurrency)` questions that got none after all their tries ends it: the server is gone.

    Args:
        url: of the API, up to and without /chat/completions.
        key: sent as a bearer token; never in an error's text.
        concurrency: questions under way at once. timeout: seconds of a try. retries: tries of a question beyond one.
        requests_per_minute: of all tries together; None for no limit.
        first_wait: seconds before the second try; each further wait is twice as long, all with jitter.
    """

    def __init__(
        self,
        url: str,
        model: str,
        sampling: Sampling,
        *,
        key: str,
        concurrency: int = 8,
        timeout: float = 120.0,
        retries: int = 5,
        requests_per_minute: float | None = None,
        first_wait: float = 1.0,
    ) -> None:
        self.url, self.model, self.sampling, self.key = url, model, sampling, key
        self.concurrency, self.timeout, self.retries, self.first_wait = concurrency, timeout, retries, first_wait
        self.requests_per_minute = requests_per_minute
        self._limit_name = "max_tokens"

    @property
    def name(self) -> str:
        return f"{self.model} at {self.url}"

    @property
    def identity(self) -> dict[str, Any]:
        """Not the address: a server may move, and its answers hold."""
        sampling = self.sampling
        return {"model": self.model, "temperature": sampling.temperature, "max_tokens": sampling.max_tokens}

    def ask(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Answer | Failure]]:
        with asyncio.Runner() as runner:
            done: asyncio.Queue[tuple[Request, Answer | Failure] | None] = asyncio.Queue()
            driver = runner.get_loop().create_task(self._drive(requests, done))
            while (pair := runner.run(done.get())) is not None:
                yield pair
            runner.run(_result(driver))

    async def _drive(self, requests: Sequence[Request], done: asyncio.Queue) -> None:
        try:
            # The package's retries and time-outs are turned off: ours do that.
            async with openai.AsyncOpenAI(
                base_url=self.url, api_key=self.key, max_retries=0, timeout=self.timeout
            ) as client:
                await _Asking(self, client, requests, done).run()
        finally:
            done.put_nowait(None)

    async def complete(self, client: openai.AsyncOpenAI, prompt: str) -> Answer:
        """One try.

        Raises:
            TimeoutError, openai.APIError: as they come. ValueError: the answer is no chat completion.
        """
        try:
            answer = await self._post(client, prompt, self._limit_name)
        except openai.BadRequestError as error:
            if "max_completion_tokens" not in error.message or self._limit_name == "max_completion_tokens":
                raise
            self._limit_name = "max_completion_tokens"  # newer models know the limit by this name alone
            answer = await self._post(client, prompt, self._limit_name)
        try:
            return _answer(answer)
        except (AttributeError, IndexError, TypeError):  # the package does not check what servers send
            raise ValueError(f"the answer is no chat completion: {str(answer)[:80]!r}") from None

    async def _post(self, client: openai.AsyncOpenAI, prompt: str, limit_name: str) -> ChatCompletion:
        limit: Any = {limit_name: self.sampling.max_tokens}
        async with asyncio.timeout(self.timeout):
            return await client.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": prompt}],
                temperature=self.sampling.temperature,
                **limit,
            )


class _Asking:
    """One run over the requests."""

    def __init__(
        self, endpoint: Endpoint, client: openai.AsyncOpenAI, requests: Sequence[Request], done: asyncio.Queue
    ) -> None:
        self.endpoint, self.client, self.todo, self.done = endpoint, client, iter(requests), done
        self.pace = Pace(endpoint.requests_per_minute)
        self.answered = False
        self.lost = 0  # questions in a row without an answer

    async def run(self) -> None:
        for request in self.todo:
            await self._question(request)
            if self.answered:
                await asyncio.gather(*(self._worker() for _ in range(self.endpoint.concurrency)))
                return

    async def _worker(self) -> None:
        for request in self.todo:
            await self._question(request)

    async def _question(self, request: Request) -> None:
        for tries in range(1, self.endpoint.retries + 2):
            await self.pace.turn()
            try:
                answer = await self.endpoint.complete(self.client, request.prompt)
            except (openai.APIError, TimeoutError, ValueError) as error:
                problem = explain(error, self.endpoint.timeout, self.endpoint.key)
            else:
                self.answered, self.lost = True, 0
                self.done.put_nowait((request, replace(answer, tries=tries)))
                return
            await self._end_if_over(problem)
            wait = self._wait(problem, tries)
            if problem.kind == "refused" or wait > LONGEST_WAIT or tries > self.endpoint.retries:
                break
            if problem.wait is not None:
                self.pace.pause(wait)  # what a server asks of one question holds for all
            else:
                await asyncio.sleep(wait)
        self.done.put_nowait((request, Failure(problem.cause, problem.detail, tries)))
        self._miss(problem)

    def _wait(self, problem: Problem, tries: int) -> float:
        if problem.wait is not None:
            return problem.wait
        return min(self.endpoint.first_wait * 2 ** (tries - 1), LONGEST_BACK_OFF) * random.uniform(0.5, 1.0)

    def _miss(self, problem: Problem) -> None:
        """Count a question without an answer, and end where there were too many in a row.

        Refusals, as of a filter for contents, may come in a row and tell nothing of the server once it has answered.
        """
        self.lost += problem.kind == "retry" or not self.answered
        name = self.endpoint.name
        if not self.answered and self.lost >= START_MISSES:
            raise UserError(
                f"{name}: the first {self.lost} questions got no answer ({problem.cause}: {problem.detail}); "
                "is the model's name right, and is --timeout long enough? The server's log may say more"
            )
        if self.answered and self.lost >= max(START_MISSES, self.endpoint.concurrency):
            raise RunError(
                f"{name} no longer answers: {self.lost} questions in a row were lost "
                f"({problem.cause}: {problem.detail})"
            )

    async def _end_if_over(self, problem: Problem) -> None:
        """End where no question can be answered."""
        if problem.kind == "fatal" and self.answered:
            raise RunError(f"{self.endpoint.name} no longer answers: {problem.cause}: {problem.detail}")
        if problem.kind == "fatal" or (problem.at_start and not self.answered):
            models = await self._models() if problem.cause == "HTTP 404" else ""
            raise UserError(advice(problem, self.endpoint.url, self.endpoint.model, models))

    async def _models(self) -> str:
        """The names of the models that are served, as far as the server tells."""
        try:
            async with asyncio.timeout(self.endpoint.timeout):
                names = [model.id for model in (await self.client.models.list()).data]
        except (openai.APIError, TimeoutError, ValueError, AttributeError, TypeError):
            return ""
        return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _answer(completion: ChatCompletion) -> Answer:
    choice, usage = completion.choices[0], completion.usage
    text = choice.message.content or choice.message.refusal or ""
    if not isinstance(text, str):
        raise TypeError("content is not text")
    read, written = (usage.prompt_tokens, usage.completion_tokens) if usage else (None, None)
    return Answer(text, choice.finish_reason, read, written)


async def _result(task: asyncio.Task) -> None:
    await task
