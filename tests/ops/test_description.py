"""The description of the compiled core: that C++, Python and the plans of a step mean the same by it."""

import ctypes
import logging
from dataclasses import fields

import pytest

from octavo.ops.native import Library, binding, description, load, runnable
from octavo.ops.plans import DrawBy, SequenceRun


@pytest.mark.parametrize(
    ("record", "row"), [(description.AttentionRun, SequenceRun), (description.Draw, DrawBy)], ids=["run", "draw"]
)
def test_tables_have_their_columns_in_the_order_of_the_records(record: type, row: type) -> None:
    assert [field.name for field in binding.fields_of(record)] == [field.name for field in fields(row)]


def test_arguments_are_named() -> None:
    core = Library(runnable()[0]).core
    numbers = (ctypes.c_float * 16)(*range(16))
    x = ctypes.addressof(numbers)
    core.add(rows=2, dtype=description.DType.F32, columns=8, scale=2.0, y=x, x=x, out=x)  # in any order
    assert list(numbers) == [3.0 * i for i in range(16)]
    with pytest.raises(TypeError, match="width"):
        core.add(rows=2, dtype=description.DType.F32, width=8, scale=2.0, y=x, x=x, out=x)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="scale"):
        core.add(rows=2, dtype=description.DType.F32, columns=8, y=x, x=x, out=x)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        core.add(2, x, x, x, 8, 2.0, description.DType.F32)  # type: ignore[misc]


def test_every_size_of_struct_is_a_multiple_of_eight() -> None:
    """So that the arguments of a recorded step's operations are aligned one after the other."""
    for signature in binding.signatures():
        assert binding.layout(signature.fields).size % 8 == 0


def test_a_library_of_another_description_is_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    name = runnable()[0]
    monkeypatch.setattr(binding, "digest", lambda: "another")
    with pytest.raises(OSError, match="compiled from other sources"):
        Library(name)
    load.cache_clear()
    runnable.cache_clear()
    try:
        with caplog.at_level(logging.INFO, "octavo"):
            assert load() is None
        assert "python setup.py build_ext --inplace" in caplog.text
    finally:
        monkeypatch.undo()
        load.cache_clear()
        runnable.cache_clear()
