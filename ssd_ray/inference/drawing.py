"""Draw the answers of one work unit with an engine, each journaled as it ends.

Writes the unit's journal, and its spans in flight into the heartbeat.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from typing import Protocol

from ssd_ray.artifacts.ledger import Span
from ssd_ray.errors import UserError, one_line
from ssd_ray.inference.crashes.heartbeat import Reporter
from ssd_ray.inference.vllm.engine import Answer, RefusedRequestError, Request, sample_seed
from ssd_ray.inference.work.jobs import JobSpan, JobSpec
from ssd_ray.inference.work.journal import Journal
from ssd_ray.inference.work.unit import WorkUnit

_TRIES = 3


class EngineProtocol(Protocol):
    """An engine as a worker uses it."""

    tokens_drawn: Mapping[str, int]
    """Tokens of all requests by job, those in flight included."""

    def submit(self, request: Request) -> Future[Answer]:
        """Queue a request; the future has its answer, or the reason of its failure."""


class Drawing:
    """A unit of a job while an engine draws its answers."""

    def __init__(
        self, *, engine: EngineProtocol, report: Reporter, job: JobSpec, unit: WorkUnit
    ) -> None:
        self.job = job
        self.unit = unit
        self.journal = Journal(job.out, unit.span, report.engine)
        self._engine = engine
        self._report = report

    def span(self, span: Span) -> JobSpan:
        """Return a span of the unit with its job."""
        return JobSpan(self.job.key, span)

    def answer(self, spans: list[Span], alone: str = "", *, testing: bool = False) -> None:
        """Draw these positions; a request without an answer after `_TRIES` tries has failed."""
        if not spans:
            return
        in_flight = self.span(Span(self.unit.span.source, spans[0].start, spans[-1].stop))
        with self._report.drawing(in_flight, alone, testing=testing):
            waiting = [position for span in spans for position in range(span.start, span.stop)]
            for attempt in range(1, _TRIES + 1):
                futures = {position: self._submit(position) for position in waiting}
                waiting = [
                    position
                    for position, future in futures.items()
                    if not self._settle(position, future, is_last=attempt == _TRIES)
                ]
                self._report.retried(self.job.key, len(waiting))

    def _settle(self, position: int, future: Future[Answer], *, is_last: bool) -> bool:
        """Wait for an answer and keep it, or its failure; return False to ask for it again.

        Raises:
            UserError: the answer could not be journaled.
        """
        error = future.exception()
        if error is None:
            self.unit.answers[position] = future.result()
        # A refusal is final; other errors may pass.
        elif isinstance(error, RefusedRequestError):
            self.unit.reasons[position] = str(error)
        elif isinstance(error, UserError):
            raise error
        elif is_last:
            self.unit.reasons[position] = f"refused {_TRIES} times: {one_line(error)}"
        else:
            return False
        return True

    def _submit(self, position: int) -> Future[Answer]:
        """Queue a request; the future has its answer once it is in the journal."""
        job, prompt = self.job, self.unit.prompts[position]
        request = Request(
            prompt_token_ids=prompt.token_ids,
            seed=sample_seed(job.seed, prompt.prompt_id, position % job.samples),
            decoding=job.decoding,
            max_tokens=job.max_tokens,
            job=job.key,
        )
        journaled: Future[Answer] = Future()

        def finished(done: Future[Answer]) -> None:
            try:
                answer = done.result()
                self.journal.append(position, answer)
                self._report.answered(job.key, len(answer.output_token_ids))
            # Handed over to the thread that waits for the answer.
            except Exception as error:
                journaled.set_exception(error)
            else:
                journaled.set_result(answer)

        self._engine.submit(request).add_done_callback(finished)
        return journaled
