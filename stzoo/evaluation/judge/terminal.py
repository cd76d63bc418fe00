"""Judging in the terminal: one key per pair, or one line per pair where there is no terminal."""

import contextlib
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence

from stzoo.evaluation.judge.answers import Answers

try:
    import termios
    import tty
except ImportError:  # Windows
    termios = None  # type: ignore[assignment]

KEYS = "0 not relevant, 1 partly, 2 relevant, s skip, u undo, q finish"
WIDTH = 88
BACKSPACE = ("\x7f", "\b")
END = ("", "\x04")  # the end of input, or Ctrl-D


def judge_in_terminal(answers: Answers, texts: Sequence[tuple[str, str, str]]) -> None:
    """Asks for the pairs without an answer until all have one, or until the judge finishes.

    Args:
        answers: The answers, which are saved one by one.
        texts: Question, title and text of each pair.
    """
    with _keys() as read:
        while (place := answers.position) < len(answers.pairs):
            _show(answers, place, texts)
            while True:
                key = read()
                if key in ("0", "1", "2", "s"):
                    answers.give(None if key == "s" else int(key))
                elif key == "u" and not answers.undo():
                    print("There is nothing to undo.", flush=True)
                    continue
                elif key == "q":
                    return
                elif key != "u":
                    print(f"Keys: {KEYS}", flush=True)
                    continue
                break


def _show(answers: Answers, place: int, texts: Sequence[tuple[str, str, str]]) -> None:
    question, title, text = (_printable(part) for part in texts[place])
    before = answers.pairs[place - 1][0] if place else None
    print(f"\n{'-' * WIDTH}\nPair {answers.answered + 1} of {len(answers.pairs)}\n")
    if answers.pairs[place][0] == before:
        print("The same question, another passage\n")
    print(textwrap.fill(question, WIDTH, initial_indent="Question  ", subsequent_indent=" " * 10) + "\n")
    if title:
        print(textwrap.fill(title, WIDTH) + "\n")
    for line in text.splitlines():
        print(textwrap.fill(line, WIDTH))
    print(f"\nHow relevant is the passage to the question? {KEYS}", flush=True)


def _printable(text: str) -> str:
    """The text without control characters, which could change the terminal."""
    return "".join(sign if sign.isprintable() or sign == "\n" else " " for sign in text)


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[], str]]:
    """A function that waits for a key on a terminal, and for a line elsewhere; "q" at the end of input."""
    if termios is None or not sys.stdin.isatty():
        yield lambda: (sys.stdin.readline() or "q").strip().lower()[:1]
        return

    def key() -> str:
        sign = sys.stdin.read(1).lower()
        return "u" if sign in BACKSPACE else "q" if sign in END else sign

    number = sys.stdin.fileno()
    before = termios.tcgetattr(number)
    try:
        tty.setcbreak(number)  # keys come one by one; Ctrl-C still interrupts
        yield key
    finally:
        termios.tcsetattr(number, termios.TCSADRAIN, before)
