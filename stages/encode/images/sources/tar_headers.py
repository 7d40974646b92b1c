"""Headers of a tar in a part of a file, found without what lies between them."""

import tarfile

from stages.encode.images.sources.archives import ReadAt

# Above any name or list of extended attributes: what is larger is no header.
MAX_HEADER_BYTES = 1 << 20
# Of a remote file: what comes about as fast as a header alone, and what waits for nothing long.
AHEAD_BYTES, MOST_AHEAD = 64 << 10, 8 << 20
# Headers that are read one by one, for about a minute, before members as near as this are passed by
# reading them: 8 MB come in the time in which a few headers do.
PATIENCE, NEAR_BYTES = 2000, 1 << 20


class Headers:
    """A part of a file in which tarfile finds headers; it never reads the data between them.

    But for remote files, of which it reads what follows too: where members are small, or so many
    that going from one to the next would take hours, ever more, and otherwise no more than comes as
    fast as a header.
    """

    def __init__(self, read: ReadAt, start: int, stop: int, *, is_remote: bool) -> None:
        self._read, self._position, self._stop = read, start, stop
        self._least_ahead = self._ahead = AHEAD_BYTES if is_remote else 0
        self._block, self._block_start, self._found, self._blocks = b"", start, 0, 0

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        self._position = position
        if self._least_ahead:
            self._found += self._holds(position, tarfile.BLOCKSIZE)

    def read(self, count: int) -> bytes:
        if count > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {count} bytes")
        count = max(min(count, self._stop - self._position), 0)
        read = self.peek if self._least_ahead else self._read
        content = read(self._position, count)
        self._position += count
        return content

    def peek(self, start: int, count: int) -> bytes:
        """So many bytes from a place on, without going there."""
        if not self._holds(start, count):
            is_near = self._blocks > PATIENCE and start - self._block_start <= NEAR_BYTES
            is_dense = self._found > 1 or is_near
            self._blocks += 1
            self._ahead = min(2 * self._ahead, MOST_AHEAD) if is_dense else self._least_ahead
            self._found, self._block_start = 0, start
            ahead = min(max(count, self._ahead), self._stop - start)
            self._block = self._read(start, max(ahead, count))
        return self._block[start - self._block_start :][:count]

    def _holds(self, start: int, count: int) -> bool:
        return 0 <= start - self._block_start <= len(self._block) - count
