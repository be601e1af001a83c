"""Turn prompts into token ids as diffusers' pipelines and transformers' tokenizers do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from controlnext.bundle.format import check_file, read_text
from controlnext.bundle.manifest import Manifest
from controlnext.errors import BundleError, is_failure
from controlnext.families import get_family

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer


class Tokens(NamedTuple):
    """The tokens of a prompt.

    ``text``: the prompt as it was tokenized; ``encoding``: as many token ids as the text encoder takes, and
    the truncated rest.
    """

    text: str
    encoding: Encoding

    @property
    def cut_off(self) -> str:
        """The truncated part of the text: its end, or its start for a tokenizer that truncates there."""
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
    """A bundle's tokenizer. Its file defines truncation, padding and added tokens.

    With ``multi_vector`` an added token (``<toy>``) stands for all that continue its name (``<toy>_1``,
    ``<toy>_2``, ...): the vectors of one textual inversion.
    """

    def __init__(self, content: str, multi_vector: bool, path: str | Path = "tokenizer.json") -> None:
        """Read the ``content`` of the file ``path``. Raises :class:`BundleError` for one that the library
        does not read, and for one that does not truncate and pad prompts to one length."""
        # loading the library takes as long as the rest of the runtime, and not every bundle needs it
        from tokenizers import Tokenizer

        self._path = path
        with self._failures():
            _check_lengths(content)
            self._tokenizer: Tokenizer = Tokenizer.from_str(content)
        added = dict(sorted(self._tokenizer.get_added_tokens_decoder().items())).values()
        self._vectors = _vectors([token.content for token in added]) if multi_vector else {}
        further = {vector for vectors in self._vectors.values() for vector in vectors[1:]}
        own = [token.content for token in added if not token.special and token.content not in further]
        self.added = sorted(own, key=lambda token: token not in self._vectors)
        """The tokens added to the vocabulary, without special ones and further vectors; those of several
        vectors first."""

    def __call__(self, prompts: Sequence[str]) -> list[Tokens]:
        """Return the tokens of each prompt."""
        with self._failures():
            texts = [self._with_all_vectors(prompt) for prompt in prompts]
            encoded = self._tokenizer.encode_batch(texts)
            if len({len(one.ids) for one in encoded}) > 1:
                raise ValueError("it makes prompts of different lengths")
        return [Tokens(*pair) for pair in zip(texts, encoded, strict=True)]

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            if not is_failure(error):
                raise
            raise BundleError(
                f"{self._path} holds no usable tokenizer: {error}; export the bundle again", argument="bundle"
            ) from error

    def _with_all_vectors(self, prompt: str) -> str:
        """Return ``prompt`` with the further vectors behind each token that has some.

        The rule is that of diffusers' ``TextualInversionLoaderMixin.maybe_convert_prompt``: the tokenizer
        finds the tokens, and each is replaced wherever its name occurs in the prompt, even as a part of
        another name. If one such name is a part of another, the order matters. It is random in diffusers;
        here it is that of the prompt.
        """
        if not self._vectors:
            return prompt
        found = self._tokenizer.encode(prompt, add_special_tokens=False)
        for token in dict.fromkeys(_texts_of([found, *found.overflowing])):
            if token in self._vectors:
                prompt = prompt.replace(token, " ".join(self._vectors[token]))
        return prompt


_LONGEST = 1 << 16
"""Number of tokens of the longest prompt; the library reserves memory for what a file says."""


def _check_lengths(content: str) -> None:
    """Raise :class:`ValueError` unless a ``tokenizer.json`` truncates and pads to the same length."""
    read = msgspec.json.decode(content, type=_Lengths)
    most, padded = read.truncation.max_length, read.padding.strategy.Fixed
    further = read.truncation.stride, read.padding.pad_to_multiple_of or 0
    if not 0 < most == padded <= _LONGEST or max(further) > _LONGEST:
        raise ValueError(
            f"it truncates prompts to {most} tokens and pads them to {padded} (accepted: the same number, at"
            f" most {_LONGEST})"
        )


class _Fixed(msgspec.Struct):
    Fixed: int


class _Padding(msgspec.Struct):
    strategy: _Fixed
    pad_to_multiple_of: int | None = None


class _Truncation(msgspec.Struct):
    max_length: int
    stride: int = 0


class _Lengths(msgspec.Struct):
    """The part of a ``tokenizer.json`` about the length of prompts."""

    truncation: _Truncation
    padding: _Padding


def _vectors(added: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """Return the vectors' names of each added token that has more than one, its own name first."""
    names = frozenset(added)
    further = {
        token: list(takewhile(names.__contains__, (f"{token}_{number}" for number in count(1))))
        for token in added
    }
    return {token: [token, *rest] for token, rest in further.items() if rest}


def _texts_of(encodings: Iterable[Encoding]) -> Iterable[str]:
    """Yield the tokens that are not padding."""
    for encoding in encodings:
        pairs = zip(encoding.tokens, encoding.attention_mask, strict=True)
        yield from (token for token, is_text in pairs if is_text)


def prompt_tokenizer(bundle: Path, manifest: Manifest, graph_name: str) -> PromptTokenizer:
    """Return the tokenizer of the text encoder ``graph_name`` after checking its file."""
    family = get_family(manifest.family)
    network = family.networks[manifest.graphs[graph_name].network]
    file = check_file(bundle, manifest, f"{network.tokenizer}/tokenizer.json")
    return PromptTokenizer(read_text(file), family.multi_vector_tokens, file)
