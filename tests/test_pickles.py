"""python -m pytest tests/test_pickles.py: plain data of Python 2 is read, anything that could run is refused."""

from __future__ import annotations

import contextlib
import datetime
import os
import pickle
from collections import OrderedDict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit.errors import DataError
from evalkit.pickles import load_plain

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


@given(PLAIN, st.sampled_from([0, 1, 2, 3, 4, 5]))
def test_plain_data_of_any_protocol_is_read(value: Any, protocol: int) -> None:
    assert load_plain(pickle.dumps(value, protocol=protocol), "refs(unc).p") == value


def test_byte_strings_of_python_2_are_latin_1() -> None:
    written_by_python_2 = b"(dp0\nS'sent'\np1\nS'caf\\xe9 man'\np2\ns."
    assert load_plain(written_by_python_2, "refs(unc).p") == {"sent": "caf\xe9 man"}
    protocol_2 = b"\x80\x02}q\x00U\x05splitq\x01U\x05testAq\x02s."
    assert load_plain(protocol_2, "refs(unc).p") == {"split": "testA"}


class Runs:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/should-not-be-there",)


@pytest.mark.parametrize(
    "value", [Runs(), os.system, eval, int, OrderedDict(a=1), datetime.date(2014, 1, 1), {1}, object(), [Runs()]]
)
@pytest.mark.parametrize("protocol", [0, 2, 3])
def test_whatever_names_a_class_or_function_is_refused(value: Any, protocol: int) -> None:
    with pytest.raises(DataError, match=r"refs\(unc\)\.p is not a safe pickle: it asks for "):
        load_plain(pickle.dumps(value, protocol=protocol), "refs(unc).p")


def test_outside_objects_and_extension_codes_are_refused() -> None:
    for data in (b"Pid\n.", b"\x80\x02\x82\x01."):
        with pytest.raises(DataError):
            load_plain(data, "x.p")


@given(PLAIN, st.sampled_from([0, 2, 4]), st.data())
def test_a_cut_pickle_is_refused(value: Any, protocol: int, data: st.DataObject) -> None:
    whole = pickle.dumps(value, protocol=protocol)
    length = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(DataError, match=r"x\.p"):
        load_plain(whole[:length], "x.p")


@given(st.binary(max_size=100))
def test_no_bytes_crash_it(data: bytes) -> None:
    with contextlib.suppress(DataError):
        load_plain(data, "x.p")
