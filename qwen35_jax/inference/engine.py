"""The inference engine: requests join and leave while others write, and none changes another's result.

``submit`` queues a request and ``step`` makes one call of the device; ``generate``, ``stream`` and ``score`` do both.
A request stays in its slot until it ends. If the pages run out, the youngest request gives its pages back and is
computed again later, by the same programs on the same numbers, so that it comes out equal bit for bit.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from qwen35_jax.inference.checks import check_prompt, check_sampling, check_scored, one_each
from qwen35_jax.inference.mailbox import Mailbox
from qwen35_jax.inference.metrics import Metrics
from qwen35_jax.inference.prefixes import points_of
from qwen35_jax.inference.prompts import Prompt, extended, read_prompts
from qwen35_jax.inference.requests import Completion, Event, Grammar, StreamedToken, TokenScores, seed_of
from qwen35_jax.inference.runner import News, Runner
from qwen35_jax.inference.sampling import EARLY_STOP, SamplingParams
from qwen35_jax.inference.scheduler import Request
from qwen35_jax.inference.sizes import EngineSizes
from qwen35_jax.inference.slots import row_of
from qwen35_jax.inference.transcript import Transcript
from qwen35_jax.model import Qwen35
from qwen35_jax.processing.thinking import CLOSE, OPEN, opens_thinking
from qwen35_jax.processing.tokenizer import Tokenizer


class Engine:
    """Completes and scores prompts: token ids, or with images and videos what ``processing.Processor`` returns.

    A request's tokens and log-probabilities depend on itself and on the engine's sizes, not on who else is there.
    Under several processes all of them make the same calls, and each gets all results. One thread makes the calls.

    Args:
      model: used as it is at each call, so a model in training can be sampled from.
      tokenizer: gives the end tokens, the think marks and the text.
      slots: most requests at once, rounded up to whole slots for each device that shares out the batch.
      cache_tokens: tokens that all pages hold together, rounded up to whole pages; by default what memory allows.
      speculative_tokens: drafts of the MTP head a step; 0 decodes plainly.
      page_size: tokens of a page; by default 256, on a CPU 64.
      prefill_chunk: tokens of a prompt that are read at once; by default 512, on a CPU 128.
      steps_per_call: most steps between two looks of the host.
      draft_vocabulary: drafts are among the tokens below this id, which is faster and stays exact; None for all.
      most_patches: of the images and videos of one prompt, rounded up to a size of the tower's programs; by default
        those of the largest image, 65,536. A model without a tower takes none.

    Raises:
      ValueError: a size is out of range, the model cannot draft, or it is split over the ``context`` mesh axis.
    """

    def __init__(
        self,
        model: Qwen35,
        tokenizer: Tokenizer,
        *,
        slots: int = 64,
        cache_tokens: int | None = None,
        speculative_tokens: int = 0,
        page_size: int | None = None,
        prefill_chunk: int | None = None,
        steps_per_call: int = 32,
        draft_vocabulary: int | None = None,
        most_patches: int | None = None,
    ):
        self.tokenizer = tokenizer
        self.sizes = EngineSizes.of(
            model, slots=slots, cache_tokens=cache_tokens, speculative_tokens=speculative_tokens, page_size=page_size,
            prefill_chunk=prefill_chunk, steps_per_call=steps_per_call, draft_vocabulary=draft_vocabulary,
            most_patches=most_patches,
        )  # fmt: skip
        self._close = tokenizer.token_id(CLOSE)
        self._runner = Runner(model, self.sizes, (tokenizer.token_id(OPEN), self._close))
        self._closing = {"hard": [self._close], "sentence": tokenizer.encode(EARLY_STOP)}
        self._mailbox = Mailbox()
        self._numbers = itertools.count()

    @property
    def model(self) -> Qwen35:
        """The model that the next call uses; another one of the same structure may take its place."""
        return self._runner.model

    @model.setter
    def model(self, model: Qwen35) -> None:
        self._runner.model = model

    @property
    def metrics(self) -> Metrics:
        """Counts since the engine was made."""
        return self._runner.metrics

    @property
    def slots(self) -> int:
        """Most requests at once."""
        return self.sizes.slots

    @property
    def max_length(self) -> int:
        """Most tokens of one request, prompt and completion together."""
        text = self.model.config.text
        return min((self.sizes.num_pages - 1) * self.sizes.page_size, text.max_position_embeddings)

    @property
    def has_work(self) -> bool:
        """Whether ``step`` has something to do or to tell."""
        return bool(self._mailbox) or self._runner.has_work

    @property
    def num_waiting(self) -> int:
        """Requests without a slot."""
        return len(self._runner.scheduler.waiting)

    @property
    def num_free_slots(self) -> int:
        """Slots without a request."""
        return self._runner.scheduler.tenants.count(None)

    @property
    def num_pages(self) -> int:
        """Pages that requests may have."""
        return self.sizes.shards * (self.sizes.num_pages - 1)

    @property
    def num_free_pages(self) -> int:
        """Pages that no request owns."""
        return sum(pool.num_free for pool in self._runner.scheduler.pools)

    def read(self, prompts: Sequence[Prompt]) -> list[Sequence[int]]:
        """Returns prompts as token ids that know their images and videos; the other methods leave such as they are.

        Any thread may call it.

        Raises:
          ValueError: as ``prompts.read_prompt`` does.
        """
        return read_prompts(prompts, self.model.config, most_patches=self.sizes.most_patches, dtype=self.model.dtype)

    def check(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int | Sequence[int],
        sampling: SamplingParams | Sequence[SamplingParams] = SamplingParams(),
    ) -> None:
        """Raises ``ValueError`` for what ``generate`` would refuse, before anything is computed."""
        settings = one_each("sampling", sampling, len(prompts))
        limits = one_each("max_new_tokens", max_new_tokens, len(prompts))
        config = self.model.config
        for number, (prompt, params, limit) in enumerate(zip(self.read(prompts), settings, limits, strict=True)):
            check_prompt(f"prompt {number}", prompt, limit, config, max_length=self.max_length)
            ends, closing = self._end_tokens(params), self._closing[params.budget_close]
            check_sampling(params, config.text.vocab_size, end_tokens=ends, closing=closing)

    def _end_tokens(self, sampling: SamplingParams) -> tuple[int, ...]:
        ends = () if sampling.ignore_end else tuple(self.tokenizer.eos_token_ids)
        return tuple(dict.fromkeys((*ends, *sampling.stop_token_ids)))

    def submit(
        self,
        prompt: Prompt,
        *,
        sampling: SamplingParams = SamplingParams(),
        max_new_tokens: int = 1024,
        seed: int = 0,
        grammar: Grammar | None = None,
        stream: bool = False,
    ) -> int:
        """Queues a request and returns its number.

        Args:
          seed: of the random choices; greedy decoding does not use it.
          grammar: what steers the tokens; while such a request writes, all are written one token a call.
          stream: whether ``step`` tells each token as it is written.

        Raises:
          ValueError: as ``generate`` does.
        """
        [prompt] = self.read([prompt])
        self.check([prompt], max_new_tokens=max_new_tokens, sampling=sampling)
        row = row_of(
            prompt, sampling, limit=max_new_tokens, seed=seed, end_tokens=self._end_tokens(sampling),
            thinking=opens_thinking(self.tokenizer, prompt), closing=self._closing[sampling.budget_close],
        )  # fmt: skip
        points = points_of(prompt, self.sizes.chunk, last=len(prompt) - 1, kind="generate")
        transcript = Transcript(self.tokenizer, prompt, sampling, stream=stream)
        return self._wait(Request(next(self._numbers), prompt, max_new_tokens, points, seed, row, transcript, grammar))

    def _wait(self, request: Request) -> int:
        self._runner.scheduler.wait(request)
        self.metrics.requests += 1
        self.metrics.prompt_tokens += len(request.prompt)
        return request.number

    def abort(self, number: int) -> Event | None:
        """Ends a request where it is and frees its slot.

        Returns:
          Its last event, with what it has written so far; None for one that is finished or unknown, or that is scored.
        """
        request = self._runner.remove(number)
        return None if request is None or request.transcript is None else self._event(News(request, "aborted"))

    def step(self) -> list[Event]:
        """Makes about one call of the device and returns what there is to tell by now; often nothing.

        Requests of ``generate``, ``stream`` and ``score`` tell their callers, not here.
        """
        if not self._mailbox:
            self._run()
        return self._mailbox.take_free()

    def _run(self) -> None:
        for event in map(self._event, self._runner.step()):
            if event.tokens or event.is_last:
                self._mailbox.put(event)

    def _event(self, news: News) -> Event:
        number, transcript = news.request.number, news.request.transcript
        if transcript is None:
            return Event(number, scores=news.scores)
        completion = None
        if news.reason is not None:
            completion = transcript.finish(news.reason, seed=news.request.seed, closed_by_budget=news.closed_by_budget)
            self.metrics.finished[completion.finish_reason] += 1
        return Event(number, transcript.fetch(), completion)

    def _events_of(self, numbers: set[int]) -> Iterator[Event]:
        """Yields the events of some requests until all of them are finished; those of others wait.

        If nobody listens any more, the requests are aborted.
        """
        self._mailbox.reserve(numbers)
        open_ones = set(numbers)
        try:
            while open_ones:
                for event in self._mailbox.take(open_ones):
                    if event.is_last:
                        open_ones.remove(event.id)
                    yield event
                if open_ones:
                    self._run()
        finally:
            for number in open_ones:
                self.abort(number)
            self._mailbox.release(numbers)

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        sampling: SamplingParams | Sequence[SamplingParams] = SamplingParams(),
        max_new_tokens: int | Sequence[int] = 1024,
        seed: int | Sequence[int] = 0,
        on_finish: Callable[[int, Completion], None] | None = None,
    ) -> list[Completion]:
        """Completes every prompt up to an end token or the limit of new tokens.

        Args:
          prompts: token ids, or the inputs of a processor; none is empty.
          sampling: how tokens are chosen, for all prompts or one a prompt.
          max_new_tokens: most tokens of one completion, likewise.
          seed: of the random choices; one for all is turned into one a prompt by ``requests.seed_of``.
          on_finish: called as each prompt finishes, with its place in ``prompts``; later ones may come first.

        Returns:
          The completions in the order of ``prompts``, each split into thinking and answer.

        Raises:
          ValueError: an empty prompt, an unknown token id, the place of an image without pixels, more tokens than the
            engine holds, settings that it cannot follow, a list that is not one value a prompt, or as ``read`` does.
        """
        prompts = self.read(prompts)
        self.check(prompts, max_new_tokens=max_new_tokens, sampling=sampling)
        count = len(prompts)
        settings, limits = one_each("sampling", sampling, count), one_each("max_new_tokens", max_new_tokens, count)
        if isinstance(seed, int | np.integer):
            seeds = [seed_of(seed, number) for number in range(count)]
        else:
            seeds = one_each("seed", seed, count)
        places = {}
        # The longest may begin first, so that none of them is left alone at the end.
        for place in sorted(range(len(prompts)), key=lambda place: -limits[place]):
            number = self.submit(
                prompts[place], sampling=settings[place], max_new_tokens=limits[place], seed=seeds[place]
            )
            places[number] = place
        done: dict[int, Completion] = {}
        for event in self._events_of(set(places)):
            if event.completion is not None:
                place = places[event.id]
                done[place] = event.completion
                if on_finish is not None:
                    on_finish(place, event.completion)
        return [done[place] for place in range(len(prompts))]

    def stream(
        self,
        prompt: Prompt,
        *,
        sampling: SamplingParams = SamplingParams(),
        max_new_tokens: int = 1024,
        seed: int = 0,
    ) -> Iterator[StreamedToken]:
        """Yields the tokens that ``generate`` would write for one prompt with this seed, as they are written.

        Raises:
          ValueError: as ``generate`` does, at the call.
        """
        number = self.submit(prompt, sampling=sampling, max_new_tokens=max_new_tokens, seed=seed, stream=True)
        self._mailbox.reserve([number])
        return (token for event in self._events_of({number}) for token in event.tokens)

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Returns the log-probability of each token of each continuation after its prompt, by the model itself.

        Prompts that begin alike are read once, chunk by chunk. Logits of few positions are held at once.

        Args:
          prompts: as in ``generate``.
          continuations: token ids, one list a prompt; none is empty.

        Returns:
          float32 arrays, as long as the continuations.

        Raises:
          ValueError: an empty prompt or continuation, a token id outside the vocabulary, more tokens than the engine
            holds, or not one continuation a prompt.
        """
        return [scores.log_probabilities for scores in self.score_tokens(prompts, continuations)]

    def score_tokens(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[int]]) -> list[TokenScores]:
        """Does the same, and also says which tokens greedy decoding would take; raises as ``score`` does."""
        prompts, places = self.read(prompts), {}
        pairs = list(zip(prompts, one_each("continuations", continuations, len(prompts)), strict=True))
        check_scored(pairs, self.model.config, max_length=self.max_length)
        for place, (prompt, continuation) in enumerate(pairs):
            # Whoever begins with a snapshot has no log-probabilities of what the other one has read.
            last = (len(prompt) - 1) // self.sizes.chunk * self.sizes.chunk
            points = points_of(prompt, self.sizes.chunk, last=last, kind="score")
            number = self._wait(Request(next(self._numbers), extended(prompt, continuation), 0, points))
            places[number] = place
            self.metrics.scored_tokens += len(continuation)
        scores = {}
        for event in self._events_of(set(places)):
            assert event.scores is not None, "a text that is scored has one event"
            length = len(continuations[places[event.id]])
            scores[places[event.id]] = TokenScores(*(x[-length:] for x in event.scores))
        return [scores[place] for place in range(len(prompts))]
