from hypothesis import given
from hypothesis import strategies as st

from cocomix.corpus.seen import Seen


@given(st.lists(st.binary(min_size=8, max_size=8).map(lambda digest: digest[:1] * 7 + digest[-1:])))
def test_a_digest_is_new_exactly_once(digests: list[bytes]) -> None:
    seen = Seen()
    assert [seen.add(digest) for digest in digests] == [
        digest not in digests[:position] for position, digest in enumerate(digests)
    ]


def test_digests_are_found_again_after_the_table_grew() -> None:
    seen = Seen()
    digests = [(number * 0x9E3779B97F4A7C15 % 2**64).to_bytes(8, "big") for number in range(1, 20_000)]
    assert all(seen.add(digest) for digest in digests)
    assert not any(seen.add(digest) for digest in digests)
