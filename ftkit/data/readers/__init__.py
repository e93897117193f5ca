"""Raw rows from files, from data that ships with ftkit, or from the hub, in chunks that a worker takes apart.

What cannot be read is a row too, with its reason: a line, the rest of a file that is cut off, or a file among others.
"""

from ftkit.data.readers.rows import Chunk, RawRow, cure_of
from ftkit.data.readers.sources import read_chunks

__all__ = ["Chunk", "RawRow", "cure_of", "read_chunks"]
