"""How BLIP and BLIP-2 clean a caption before they embed it."""

from __future__ import annotations

import re

_MAX_WORDS = 50


def blip_caption(text: str) -> str:
    r"""Return the caption in lower case, its marks as spaces, at most 50 words (LAVIS BlipCaptionProcessor).

    >>> blip_caption('A man; "riding"  a wave.\n')
    'a man riding a wave'
    """
    words = re.sub(r"([.!\"()*#:;~])", " ", text.lower()).split()
    return " ".join(words[:_MAX_WORDS])
