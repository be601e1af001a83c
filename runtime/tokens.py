"""Prompts to token ids, as diffusers' pipelines and transformers' tokenizers make them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import count, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from controlnext.bundle.format import check_file
from controlnext.bundle.manifest import Manifest
from controlnext.families import get_family

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer


class Tokens(NamedTuple):
    """``text``: a prompt as it was tokenized; ``encoding``: its token ids, as many as the text encoder takes,
    and what was cut off."""

    text: str
    encoding: Encoding

    @property
    def cut_off(self) -> str:
        """The part of the text behind (or, if the tokenizer cuts there, in front of) what was kept."""
        spans = [
            span
            for part in self.encoding.overflowing
            for span, special in zip(part.offsets, part.special_tokens_mask, strict=True)
            if not special
        ]
        if not spans:
            return ""
        return self.text[min(start for start, _ in spans) : max(end for _, end in spans)].strip()


class PromptTokenizer:
    """A bundle's tokenizer. Its file says how prompts are cut off and padded, and which tokens were added.

    With ``multi_vector`` an added token (``<toy>``) stands for all that continue its name (``<toy>_1``,
    ``<toy>_2``, ...): the vectors of one textual inversion.
    """

    def __init__(self, content: str, multi_vector: bool) -> None:
        # loading the library takes as long as the rest of the runtime, and not every bundle needs it
        from tokenizers import Tokenizer

        self._tokenizer: Tokenizer = Tokenizer.from_str(content)
        added = dict(sorted(self._tokenizer.get_added_tokens_decoder().items())).values()
        self._vectors = _vectors([token.content for token in added]) if multi_vector else {}
        further = {vector for vectors in self._vectors.values() for vector in vectors[1:]}
        own = [token.content for token in added if not token.special and token.content not in further]
        self.added = sorted(own, key=lambda token: token not in self._vectors)
        """The tokens that were added to the vocabulary, special ones and further vectors left out; those of
        several vectors first."""

    def __call__(self, prompts: Sequence[str]) -> list[Tokens]:
        """The tokens of each prompt."""
        texts = [self._with_all_vectors(prompt) for prompt in prompts]
        return [Tokens(*pair) for pair in zip(texts, self._tokenizer.encode_batch(texts), strict=True)]

    def _with_all_vectors(self, prompt: str) -> str:
        """``prompt`` with the further vectors behind each token that has some, by the rule of diffusers'
        ``TextualInversionLoaderMixin.maybe_convert_prompt``: tokens are found by the tokenizer, and each is
        replaced wherever its name is in the prompt, be it a part of another's.

        Where one such name is a part of another, the order counts, which diffusers leaves to chance; here it
        is that of the prompt.
        """
        if not self._vectors:
            return prompt
        found = self._tokenizer.encode(prompt, add_special_tokens=False)
        for token in dict.fromkeys(_texts_of([found, *found.overflowing])):
            if token in self._vectors:
                prompt = prompt.replace(token, " ".join(self._vectors[token]))
        return prompt


def _vectors(added: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """The names of the vectors of each added token that has more than one, its own first."""
    known = frozenset(added)
    further = {
        token: list(takewhile(known.__contains__, (f"{token}_{number}" for number in count(1))))
        for token in added
    }
    return {token: [token, *names] for token, names in further.items() if names}


def _texts_of(encodings: Iterable[Encoding]) -> Iterable[str]:
    """The tokens that are no padding."""
    for encoding in encodings:
        pairs = zip(encoding.tokens, encoding.attention_mask, strict=True)
        yield from (token for token, is_text in pairs if is_text)


def prompt_tokenizer(bundle: Path, manifest: Manifest, folder: str) -> PromptTokenizer:
    """The tokenizer of the text encoder whose graph is in ``folder``, after its file was found right."""
    family = get_family(manifest.family)
    network = family.networks[manifest.graphs[folder].network]
    file = check_file(bundle, manifest, f"{network.tokenizer}/tokenizer.json")
    return PromptTokenizer(file.read_text(encoding="utf-8"), family.multi_vector_tokens)
