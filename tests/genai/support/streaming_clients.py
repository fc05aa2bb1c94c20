"""Clients of a generative model on the whole platform.

They stream one answer after the other, and record their answers.
"""

import json
import threading
import time

import httpx

from tests.waiting import until

STREAMS, TOKENS = 4, 32
"""A token takes some milliseconds of processor time, in vLLM on a CPU and in all that it passes."""
PAUSE_SECONDS = 1.5
"""Between two streams of a client: the engine that starts needs processors too."""


def greedy_body(prompt):
    """Body of a completion for which one engine gives the same text each time."""
    return {"prompt": prompt, "max_tokens": TOKENS, "temperature": 0}


class StreamingClients:
    """Clients that stream one answer after the other, and their answers. The models are asked in turn."""

    def __init__(self, url, *models, streams=STREAMS):
        self._url = url
        self._streams = streams
        self._models = models or ("chat",)
        self.seen = set()
        """(model, its name in each event, generation, snapshots) of whole answers."""
        self.said = {}
        """(model, generation, prompt) -> the different texts of whole answers."""
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(streams)]
        self.whole, self.broken, self.gaps = [], [], []

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        until(lambda: len(self.whole) + len(self.broken) > self._streams)
        return self

    def __exit__(self, *_):
        seen = len(self.whole)
        until(lambda: len(self.whole) > seen + self._streams or self.broken)
        self._over.set()
        for thread in self._threads:
            thread.join()

    def await_answers(self):
        """Wait for two more answers for each client, or for a broken one."""
        seen = len(self.whole)
        until(lambda: len(self.whole) > seen + 2 * self._streams or self.broken)

    def _run(self, number):
        with httpx.Client(trust_env=False, timeout=120) as client:
            while not self._over.is_set():
                try:
                    self._stream(client, number)
                except httpx.HTTPError as error:
                    self.broken.append(repr(error))
                self._over.wait(PAUSE_SECONDS)

    def _stream(self, client, number):
        model = self._models[number % len(self._models)]
        body = {"model": model, **greedy_body(f"prompt {number}"), "ignore_eos": True}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        words, names, usage, end, last = [], set(), None, None, time.monotonic()
        with client.stream("POST", f"{self._url}/v1/completions", json=body) as answer:
            generation = answer.headers.get("x-ipnext-generation")
            if answer.status_code != 200:
                self.broken.append(f"{answer.status_code}: {answer.read()[:200]!r}")
                return
            for line in answer.iter_lines():
                if not line.startswith("data: "):
                    continue
                self.gaps.append(time.monotonic() - last)
                last = time.monotonic()
                if line == "data: [DONE]":
                    end = "done"
                    break
                event = json.loads(line[6:])
                words += [choice["text"] for choice in event["choices"]]
                names.add(event["model"])
                usage = event.get("usage") or usage
        if end is None or usage is None or usage["completion_tokens"] != TOKENS:
            self.broken.append(f"ended early: {usage}")
            return
        self.whole.append((number, generation, "".join(words)))
        self.said.setdefault((model, generation, body["prompt"]), set()).add("".join(words))
        self.seen.add((model, *names, generation, answer.headers.get("x-ipnext-snapshots")))
