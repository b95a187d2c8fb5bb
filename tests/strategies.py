"""What hypothesis draws in several test files."""

from __future__ import annotations

from hypothesis import strategies as st

ODD_TEXTS = (
    "", " ", "\x00", "\ud800", "a\udfff", "\u2028", "\r\n\x0b\x0c", "\u0661\u0662,\u0663", "\uff11.\uff12", "9" * 5000,
    "1e999", "-inf", "nan%", "%", ".", "." * 100, "," * 50, "İ", "ß", "ΑΣ", "e\u0301", "(1,2),(3", "(1,2),(nan,inf)",
    "(" * 2000, "the the a an", "n't 'ow's'at", "yes" * 500, "\U0001f355" * 200,
)  # fmt: skip

any_text = st.text(st.characters(exclude_categories=())) | st.sampled_from(ODD_TEXTS)
"""Any string that Python can hold: lone surrogates, NUL and digits of any script too."""
