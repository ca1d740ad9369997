from textwrap import dedent

import pytest

from cocomix.corpus.prose import fold, paragraphs

PROSE = "The optimizer keeps a running average of the gradient, which it uses to scale the step."
MORE = "It is safe to call this function from several threads at the same time."


def test_wrapped_lines_are_joined_and_paragraphs_stay_apart() -> None:
    text = f"""
    The optimizer keeps a running average of the gradient,
    which it uses to scale the step.

    {MORE}
    """
    assert paragraphs(text) == [PROSE, MORE]


@pytest.mark.parametrize(
    "dropped",
    [
        ">>> the_function(1, 2)\nThe result is what a reader of this page would expect.",
        "Parameters\n----------\nx : int\n    The number that is added to the other number.\ny\n    The other one.",
        "Args:\n    x: The number that is added to the other number.\n    y (int): It is the other number.",
        "Returns:\n    The sum of the two numbers that were given to it.",
        ":param x: The number that is added to the other number.\n    It must not be a negative number.",
        "@param x: The number that is added to the other number.",
        "- **x** (`int`): The number that is added to the other number.",
        "``name``: The name of the thing that is to be changed.",
        ".. code-block:: python\n\n    The body of the code block is not prose at all.",
        ".. _label:\n\n.. image:: a.png\n    The picture shows the result of the computation.",
        "```\nThe block between the fences is of no use to a reader.\n```",
        "| The table | has a row | of the words |\n+-----------+",
        "=====  =====\nThe    table is not prose at all.\n=====  =====",
        "See https://example.org/the/page/of/the/project for all the details.",
        "Licensed under the Apache License, a copy of which is in the file.",
        "The Great And Long Heading Of A Page.\n=====================================",
        "## The heading of a section of the page.",
        "x = the_function(a=1, b=[2, 3]) + the_other(c) - {4: 5} and the rest of it.",
        "lower case at the start is the continuation of something that is missing.",
        "The sentence of this paragraph has no end and",
        "Too short.",
        "该函数返回两个数字的总和并且可以在多个线程中同时调用.",
    ],
)
def test_what_is_no_prose_is_dropped_and_its_surroundings_stay(dropped: str) -> None:
    assert paragraphs(f"{PROSE}\n\n{dropped}\n") == [PROSE]


@pytest.mark.parametrize(
    "heading", ["Notes\n-----\n", "Note:\n    ", ".. note:: ", ".. warning::\n\n    ", "- ", "2. "]
)
def test_notes_and_items_of_lists_are_kept(heading: str) -> None:
    assert paragraphs(f"{PROSE}\n\n{heading}{MORE}") == [PROSE, MORE]


def test_what_follows_a_dropped_section_is_kept() -> None:
    numpy_style = f"{PROSE}\n\nParameters\n----------\nx : int\n    The number.\n\nNotes\n-----\n{MORE}"
    google_style = f"{PROSE}\n\nArgs:\n    x: The number that is added.\n\n{MORE}"
    literal = f"{PROSE} For example::\n\n    The code that is shown here is not prose.\n\n{MORE}"
    assert paragraphs(numpy_style) == paragraphs(google_style) == paragraphs(literal) == [PROSE, MORE]


@pytest.mark.parametrize(
    "marked",
    [
        "It is **safe** to call `this` function from *several* threads at the same time.",
        "It is ``safe`` to call :func:`this` function from [several](http://x.org) threads at the same time.",
        "It is safe to call :py:func:`~pkg.this` function from `several <http://x.org>`_ threads at the same time.",
        "It is <b>safe</b> to call C{this} function from several threads [1]_ at the same&nbsp;time.",
    ],
)
def test_inline_markup_is_removed(marked: str) -> None:
    assert paragraphs(marked) == [MORE]


def test_an_indented_docstring_reads_as_one_at_the_margin() -> None:
    docstring = f"{PROSE}\n\n        {MORE}\n        "
    assert paragraphs(docstring) == paragraphs(dedent(docstring)) == [PROSE, MORE]


def test_template_text_folds_to_one_key() -> None:
    bert = "The BertModel has 12 layers and is documented in modeling_bert.py as well."
    gpt = "The GPT2Model has 48 layers, and is documented in modeling_gpt2.py as well!"
    assert fold(bert) == fold(gpt)
    assert fold(bert) != fold(bert.replace("layers", "heads"))
