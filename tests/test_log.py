"""The log: what was written once is read again, whatever a kill, a disk or another program left in the folder."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit.errors import ResultsError
from evalkit.log import Writer, read_log
from evalkit.types import Prediction
from tests.strategies import any_text

LINE = b'{"sample_id": "1", "output": "yes", "prompt": "p", "error": null, "seconds": 0.5}\n'


def write(folder: Path, *predictions: Prediction) -> Path:
    with Writer(folder) as writer:
        writer.append(predictions)
    return writer.path


def answer(sample_id: str, output: str | None, error: str | None = None) -> Prediction:
    return Prediction(sample_id=sample_id, output=output, error=error)


finite = st.floats(allow_nan=False, allow_infinity=False)
pairs = st.lists(st.tuples(any_text, finite, st.none() | finite), max_size=3).map(tuple)


@given(
    st.lists(
        st.builds(
            Prediction,
            sample_id=any_text,
            output=any_text,
            prompt=st.none() | any_text,
            error=st.none() | any_text,
            seconds=st.floats(0, 1e6).map(lambda number: round(number, 6)),
            pairs=st.none() | pairs,
        ),
        max_size=4,
        unique_by=lambda prediction: prediction.sample_id,
    )
)
def test_whatever_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, predictions: list[Prediction]
) -> None:
    folder = tmp_path_factory.mktemp("log")
    write(folder, *predictions)
    assert read_log(folder).predictions == {prediction.sample_id: prediction for prediction in predictions}


def test_a_line_is_one_line_with_the_fields_that_readers_rely_on(tmp_path: Path) -> None:
    file = write(tmp_path, Prediction(sample_id="1", output="a\u2028b\nc\x00", prompt="p", seconds=0.25))
    data = file.read_bytes()
    assert data.count(b"\n") == 1
    assert data.endswith(b"\n")
    assert data.isascii()  # no separator that a text reader would cut at
    assert {"sample_id", "output", "prompt", "error", "seconds"} <= set(json.loads(data))


def test_a_log_of_format_1_stays_readable(tmp_path: Path) -> None:
    (tmp_path / "20261122T120000.000000-0a1b2c3d.jsonl").write_bytes(
        LINE
        + b'{"sample_id": "2", "output": null, "prompt": "p", "error": "torn", "seconds": 0.0}\n'
        + b'{"sample_id": "3", "output": null, "prompt": null, "error": null, "seconds": 0.0, '
        + b'"pairs": [["t1", 0.5, 0.25], ["t2", -0.5, null]]}\n'
    )
    assert list(read_log(tmp_path).predictions.values()) == [
        Prediction(sample_id="1", output="yes", prompt="p", seconds=0.5),
        Prediction(sample_id="2", output=None, prompt="p", error="torn"),
        Prediction(sample_id="3", output=None, pairs=(("t1", 0.5, 0.25), ("t2", -0.5, None))),
    ]


@given(cut=st.integers(0, 3 * len(LINE)))
def test_cut_at_any_byte_all_whole_lines_are_kept(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    folder = tmp_path_factory.mktemp("log")
    whole = b"".join(LINE.replace(b'"1"', f'"{number}"'.encode()) for number in range(3))
    (folder / "a.jsonl").write_bytes(whole[:cut])
    log = read_log(folder)
    ends = [len(LINE) * (number + 1) for number in range(3)]
    # A line that lacks only its newline is whole: its last character is the closing brace.
    assert set(log.predictions) == {str(number) for number, end in enumerate(ends) if end - 1 <= cut}
    assert log.torn == (0 if any(cut in (end - 1, end) for end in ends) or cut == 0 else 1)


@pytest.mark.parametrize(
    "line",
    [
        b"\x00" * 64,  # a power cut can leave a file longer than what was written
        b"\x00\x00" + LINE,
        b"null",
        b"[]",
        b'"text"',
        b"{}",
        b'{"question_id": 1, "answer": "yes"}',
        b'{"sample_id": 1, "output": "yes"}',
        b'{"sample_id": ["1"], "output": "yes"}',
        b'{"sample_id": "1", "output": 7}',
        b'{"sample_id": "1", "output": "yes", "seconds": "soon"}',
        b'{"sample_id": "1", "output": "yes", "error": 5}',
        b'{"sample_id": "1", "output": null, "pairs": [["t", 0.5]]}',
        b'{"sample_id": "1", "output": null, "pairs": [[1, 0.5, 0.5]]}',
        b'{"sample_id": "1", "output": null, "pairs": 3}',
        b'{"sample_id": "1", "output": null, "error": null}',
        b"\xff\xfe\xfa",
        b"[" * 100_000,
        b'{"sample_id": "1", "output": "y\xe2"}',
    ],
)
def test_a_line_that_is_no_prediction_is_counted_and_its_sample_asked_again(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINE.replace(b'"1"', b'"0"') + line + b"\n" + LINE.replace(b'"1"', b'"2"'))
    log = read_log(tmp_path)
    assert set(log.predictions) == {"0", "2"}
    assert log.torn == 1
    assert log.answered() == {"0", "2"}


def test_a_line_without_output_pairs_or_error_is_no_answer(tmp_path: Path) -> None:
    """Scored as an empty text it would be a wrong answer; nobody gave one."""
    write(tmp_path, answer("1", None))
    assert read_log(tmp_path).answered() == set()


def test_an_answer_beats_an_error_in_either_order(tmp_path: Path) -> None:
    write(tmp_path, answer("1", None, "broken"), answer("2", "yes"))
    write(tmp_path, answer("1", "no"), answer("2", None, "broken"))
    log = read_log(tmp_path)
    assert {key: each.output for key, each in log.predictions.items()} == {"1": "no", "2": "yes"}
    assert log.answered() == {"1", "2"}


def test_a_failed_sample_is_not_answered(tmp_path: Path) -> None:
    write(tmp_path, answer("1", None, "broken"))
    assert read_log(tmp_path).answered() == set()


def test_of_two_answers_the_later_start_wins_also_within_a_second(tmp_path: Path) -> None:
    started = [write(tmp_path, answer("1", str(number))) for number in range(8)]
    assert sorted(started) == started, "random names would be in the order of the starts once in 40,320"
    assert read_log(tmp_path).predictions["1"].output == "7"


def test_two_writers_of_one_folder_do_not_touch_each_other(tmp_path: Path) -> None:
    with Writer(tmp_path) as one, Writer(tmp_path) as other:
        assert one.path != other.path
        for number in range(20):
            (one if number % 2 else other).append([answer(str(number), "x" * 5000)])
        assert len(read_log(tmp_path).answered()) == 20, "what is appended is readable at once, by another process too"


def test_other_files_of_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a log")
    write(tmp_path, answer("1", "yes"))
    assert read_log(tmp_path).torn == 0


def test_an_empty_or_absent_folder_is_an_empty_log(tmp_path: Path) -> None:
    assert read_log(tmp_path / "none").predictions == {}


def test_a_full_disk_is_named_and_whole_lines_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, room = os.write, [len(LINE) + 30]

    def write_until_full(descriptor: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = real(descriptor, data[: room[0]])
        room[0] -= count
        return count

    with Writer(tmp_path) as writer:
        monkeypatch.setattr("evalkit.log.os.write", write_until_full)
        with pytest.raises(ResultsError, match=r"No space left on device.*out=DIR.*continues"):
            writer.append([answer("1", "first"), answer("2", "second")])
    log = read_log(tmp_path)
    assert (set(log.predictions), log.torn) == ({"1"}, 1)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match=re.escape(str(tmp_path / "file"))):
        Writer(tmp_path / "file" / "predictions")


def test_a_log_that_is_listed_before_it_can_be_opened_is_not_there_yet(tmp_path: Path) -> None:
    write(tmp_path, answer("1", "yes"))
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "not yet")
    assert read_log(tmp_path).answered() == {"1"}


def test_a_log_that_cannot_be_read_is_named_not_taken_for_empty(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").mkdir()
    with pytest.raises(ResultsError, match="cannot read"):
        read_log(tmp_path)
