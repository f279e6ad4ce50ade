"""One prompt, ready to be read: its tokens, where its needles and the question stand, and what the answers are."""

from collections import Counter
from dataclasses import dataclass

from neuralmem.evaluation.prompts import Task
from neuralmem.evaluation.rope import Rope
from neuralmem.evaluation.stats import share_within


@dataclass(frozen=True)
class Sample:
    """A prompt and its answers.

    Args:
        task: the task
        protocol: the rule that gave its length
        length: nominal length in tokens
        number: of the sample within its task, haystack and length
        seed: of the run
        haystack: id of the haystack
        rope: the prompt's tokens, answer prefix included
        context: first token of the haystack and the one after its last
        needles: the same of every needle asked for, in the order of the prompt; where the answer is spread over the
            whole haystack (cwe, fwe), that of the haystack
        question: first token after the haystack
        key: what is asked for
        answers: its values
        candidates: continuations of the prompt as token ids, the true one first; none where there are several answers
        counted: the haystack's words in their order, where words are to be counted
    """

    task: Task
    protocol: str
    length: int
    number: int
    seed: int
    haystack: str
    rope: Rope
    context: tuple[int, int]
    needles: tuple[tuple[int, int], ...]
    question: int
    key: str
    answers: tuple[str, ...]
    candidates: tuple[tuple[int, ...], ...]
    counted: tuple[str, ...] = ()

    @property
    def distance(self) -> int:
        """Tokens from the last of the nearest needle to the last of the prompt, where the answer's first is predicted.

        With one needle this and `farthest` are the same.
        """
        return len(self.rope) - max(stop for _, stop in self.needles)

    @property
    def farthest(self) -> int:
        """The same of the needle that is farthest back."""
        return len(self.rope) - min(stop for _, stop in self.needles)

    @property
    def depth(self) -> float:
        """Where the first needle begins in the haystack, in percent of the haystack's tokens, needles included."""
        first = min(start for start, _ in self.needles)
        return 100 * (first - self.context[0]) / (self.context[1] - self.context[0])

    def beyond(self, reach: int) -> bool:
        """Whether all needles asked for are, as a whole, farther back than attention and convolutions can see."""
        return self.distance > reach

    def null(self, reach: int) -> float:
        """Official score of a model that sees the last `reach` tokens only and makes the best of them.

        Of needles it finds those that stand in these tokens; placed uniformly, that is reach / length of them. Where
        words are to be counted it counts those that it sees, a share of them as of the haystack's tokens.
        """
        if not self.counted:
            return share_within(reach, len(self.rope), self.needles)
        size = self.context[1] - self.context[0]
        seen = min(size, max(0, reach - (len(self.rope) - self.context[1])))
        words = self.counted[len(self.counted) - len(self.counted) * seen // size :]
        counts = Counter(word for word in words if word != "...").most_common(len(self.answers))
        return len({word for word, _ in counts} & set(self.answers)) / len(self.answers)
