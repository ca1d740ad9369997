"""Which documents were there before, in a few bytes each."""

from array import array


class Seen:
    """A growing set of 8-byte digests: a hash table of bare integers, at most two thirds full.

    12 to 24 bytes an entry, where a set of Python objects takes a hundred. Two of N different documents share a
    digest with probability N^2 / 2^65: 2e-6 for eight million.
    """

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 << 10))
        self._count = 0

    def add(self, digest: bytes) -> bool:
        """Enter a digest; whether it is new."""
        if 3 * self._count >= 2 * len(self._slots):
            filled = filter(None, self._slots)
            self._slots = array("Q", bytes(16 * len(self._slots)))
            for value in filled:
                self._place(value)
        new = self._place(int.from_bytes(digest, "big") or 1)  # 0 marks a free slot
        self._count += new
        return new

    def _place(self, value: int) -> bool:
        slots, last = self._slots, len(self._slots) - 1
        slot = value & last
        while found := slots[slot]:
            if found == value:
                return False
            slot = (slot + 1) & last
        slots[slot] = value
        return True
