"""Hypothesis strategies for prompt groups of few distinct tokens, so that coincidences are common."""

from hypothesis import strategies as st

from tests.tiny import Group

BOS = 1
TOKENS = st.integers(3, 5)


@st.composite
def groups(draw: st.DrawFn, bos: bool = False) -> Group:
    """A prompt of 0 to 6 tokens, 1 to 4 responses of 0 to 6, edges, and answers that begin in or after the prompt."""
    prompt = [BOS] * bos + draw(st.lists(TOKENS, max_size=6))
    responses = draw(st.lists(st.lists(TOKENS, max_size=6), min_size=1, max_size=4))
    if not prompt:
        responses = [response or [3] for response in responses]
    count = len(responses)
    pairs = [(b, w) for b in range(count) for w in range(count) if b != w]
    edges = draw(st.lists(st.sampled_from(pairs), max_size=4, unique=True)) if pairs else []
    answer = [draw(st.integers(int(bos), len(prompt))) for _ in responses]
    values = {
        name: [draw(st.sampled_from(choice)) for _ in edges]
        for name, choice in {"margin": (0.0, -1.5), "target": (1.0, 0.25), "weight": (1.0, 0.5, 0.0)}.items()
    }
    return Group([prompt + response for response in responses], tuple(edges), answer, **values)
