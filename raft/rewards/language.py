"""Which language a text is in, by py3langid: an optional package with 71 languages, by their character n-grams."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from raft.errors import UserError

LEAST_OF_PROMPT = 0.3  # below this for its best language, a prompt says nothing ("OK", a formula)
STRANGE_TO_PROMPT = 0.1  # below this for the response's language, the prompt is not in it


@lru_cache(maxsize=1)
def language_model() -> Any:
    """The package's model, which takes seconds to unpack.

    Raises:
        UserError: if the package is not installed.
    """
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier  # type: ignore[import-untyped]
    except ImportError as error:
        raise UserError("rule:language needs the package py3langid: pip install 'raft-toolkit[language]'.") from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def languages_differ(prompt: str, response: str, confidence: float) -> bool:
    """Whether a response is in another language than its prompt, with probability ``confidence`` for its own.

    Short texts have flat probabilities, so "Yes." is never blamed.
    """
    language, certainty = language_model().classify(response)
    if certainty < confidence:
        return False
    asked = dict(language_model().rank(prompt))
    return max(asked.values()) >= LEAST_OF_PROMPT and asked.get(language, 0.0) < STRANGE_TO_PROMPT
