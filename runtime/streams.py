"""Standard output and standard error that cannot end a run, and text that is UTF-8 everywhere.

In: whatever the shell, the locale and a pipe's other end do. Out: `sys.stdout` and `sys.stderr`.
Independent of: what is printed.
"""

import io
import os
import sys


class Stream(io.TextIOWrapper):
    """A stream of UTF-8 that, once it cannot be written any more, discards what it is given.

    The reader of a pipe may leave (`| head -1`), a disk may be full, a terminal may be closed: none
    of it is worth the end of a training. Later writes, of C code and of child processes too, go to
    /dev/null.
    """

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            discard(self.fileno())
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:  # at the interpreter's exit, too, which would make its status 120
            discard(self.fileno())


def discard(descriptor: int) -> None:
    """Make a file descriptor write to /dev/null."""
    null = os.open(os.devnull, os.O_RDWR)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)


def open_streams() -> None:
    """To be called before anything is printed or opened.

    In a locale that is not UTF-8 this starts the same process (with its number) again in Python's
    UTF-8 mode: otherwise words of the command line, names of files and the files that libraries
    open would be decoded as, say, Latin-1.
    """
    if sys.getfilesystemencoding() != "utf-8":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # closed, by `>&-`: the next file to be opened would take its place
            discard(descriptor)
    sys.stdout, sys.stderr = make_stream(1), make_stream(2)


def make_stream(descriptor: int) -> Stream:
    """A name that is not UTF-8 is printed with the bytes that it has."""
    file = os.fdopen(descriptor, "wb", closefd=False)
    return Stream(file, "utf-8", "surrogateescape", line_buffering=True)
