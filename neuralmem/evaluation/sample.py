"""One needle prompt, ready to be read: its tokens, where the needle and the question stand, and what the answer is."""

from dataclasses import dataclass

from neuralmem.evaluation.prompts import Task
from neuralmem.evaluation.rope import Rope


@dataclass(frozen=True)
class Sample:
    """A prompt and its answer.

    Args:
        task: the task
        protocol: the rule that gave its length
        length: nominal length in tokens
        number: of the sample within its task, haystack and length
        seed: of the run
        haystack: id of the haystack
        rope: the prompt's tokens, answer prefix included
        context: first token of the haystack and the one after its last
        needle: first token of the needle and the one after its last
        question: first token after the haystack
        key: what is asked for
        answer: its value
        candidates: continuations of the prompt as token ids, the true one first
    """

    task: Task
    protocol: str
    length: int
    number: int
    seed: int
    haystack: str
    rope: Rope
    context: tuple[int, int]
    needle: tuple[int, int]
    question: int
    key: str
    answer: str
    candidates: tuple[tuple[int, ...], ...]

    @property
    def distance(self) -> int:
        """Tokens from the last of the needle to the last of the prompt, where the answer's first token is predicted."""
        return len(self.rope) - self.needle[1]

    @property
    def depth(self) -> float:
        """Where the needle begins in the haystack, in percent of the haystack's tokens, needle included."""
        return 100 * (self.needle[0] - self.context[0]) / (self.context[1] - self.context[0])

    def beyond(self, reach: int) -> bool:
        """Whether the whole needle is farther back than attention and convolutions can see."""
        return self.distance > reach
