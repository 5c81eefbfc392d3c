"""Search over hand-made tables of probabilities."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captioner.config import DecodeConfig
from captioner.errors import ConfigError
from captioner.search import beam_search, draw_uniforms, sample, search
from captioner.tokens import BOS, EOS, PAD, UNK

A, B, C = 4, 5, 6
V = 7
PLAIN = DecodeConfig(beam_size=1, length_norm=0.0, max_words=5)


def table(*chances):
    """A `step` that knows the next word from the last one: {last: {next: probability}}."""
    logits = torch.full((len(chances), V, V), -30.0)
    for index, rows in enumerate(chances):
        for last, following in rows.items():
            for word, chance in following.items():
                logits[index, last, word] = torch.tensor(chance).log()

    def step(tokens, state, image):
        (count,) = state
        attention = torch.nn.functional.one_hot(tokens, V).float()
        return logits[image, tokens], (count + 1,), attention

    return step, (torch.zeros(len(chances)),)


# Greedy takes A (0.6) and then can only do badly; the best caption starts with B.
TRAP = {BOS: {A: 0.6, B: 0.4}, A: {C: 0.5, EOS: 0.5}, B: {EOS: 1.0}, C: {EOS: 0.5, C: 0.5}}
EASY = {BOS: {C: 0.9, B: 0.1}, C: {A: 0.9, EOS: 0.1}, A: {EOS: 1.0}, B: {EOS: 1.0}}


def test_beam_finds_what_greedy_misses():
    greedy = beam_search(*table(TRAP), replace(PLAIN, beam_size=1))[0][0]
    beam = beam_search(*table(TRAP), replace(PLAIN, beam_size=2))[0][0]
    assert greedy.tokens[0] == A
    assert beam.tokens == [B]
    assert beam.log_prob == pytest.approx(torch.tensor(0.4).log().item(), abs=1e-4)
    assert beam.log_prob > greedy.log_prob


def test_images_of_a_batch_have_the_captions_they_have_alone():
    together = beam_search(*table(TRAP, EASY), replace(PLAIN, beam_size=3))
    for index, rows in enumerate((TRAP, EASY)):
        alone = beam_search(*table(rows), replace(PLAIN, beam_size=3))[0]
        assert [h.tokens for h in together[index]] == [h.tokens for h in alone]
        assert [h.score for h in together[index]] == pytest.approx([h.score for h in alone])


def repeats(words, size):
    """Whether a sequence of `size` words occurs twice, as one would write it down."""
    sequences = [tuple(words[at : at + size]) for at in range(len(words) - size + 1)]
    return size > 0 and len(set(sequences)) < len(sequences)


def plain_beam_search(log_probs, config, bad_endings=()):
    """The search as one would write it down: one image, lists, a full sort. (words, log_prob).

    No two captions of an image are equal: what both ends at `max_words` and is cut there is one
    caption, with the better of its two scores.
    """
    beams, most = config.beam_size, config.max_words
    alive, finished = [((), 0.0)], []  # finished: words, log-probability, score

    def finish(words, log_prob, steps):
        return words, log_prob, log_prob / steps**config.length_norm

    for length in range(most + 1):
        ways = []
        for words, log_prob in alive:
            row = log_probs[length, words[-1] if words else BOS].clone()
            row[[PAD, BOS, UNK] + [EOS] * (length == 0)] = -torch.inf
            row = row.log_softmax(-1).tolist()
            following = [w for w in range(V) if row[w] > -torch.inf]
            kept = [
                w for w in following if w == EOS or not repeats((*words, w), config.block_repeats)
            ]
            if words and words[-1] in bad_endings and kept != [EOS]:
                kept = [w for w in kept if w != EOS]
            ways += [((*words, word), log_prob + row[word]) for word in kept]
        ways = sorted((way for way in ways if way[1] > -torch.inf), key=lambda way: -way[1])
        ends = [way for way in ways[:beams] if way[0][-1] == EOS][: beams - len(finished)]
        finished += [finish(words[:-1], log_prob, length + 1) for words, log_prob in ends]
        if len(finished) == beams:
            break
        if length == most:
            for words, log_prob in alive:
                if len(finished) == beams:
                    break
                cut = finish(words, log_prob, length)
                same = [found for found in finished if found[0] == words]
                finished = [found for found in finished if found[0] != words]
                finished.append(max([*same, cut], key=lambda found: found[2]))
            break
        alive = [way for way in ways if way[0][-1] != EOS][:beams]
    assert len({words for words, _, _ in finished}) == len(finished)
    return [found[:2] for found in sorted(finished, key=lambda found: -found[2])]


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    images=st.integers(1, 4),
    beams=st.integers(1, 9),
    max_words=st.integers(1, 6),
    eagerness=st.sampled_from([-30.0, -2.0, 0.0, 3.0]),
    spread=st.sampled_from([1.0, 10.0]),  # at 10 all the beams may come from one row
    block_repeats=st.sampled_from([0, 0, 1, 2, 3, 9]),
    bad_endings=st.sampled_from([(), (A,), (A, B, C)]),
    length_norm=st.sampled_from([0.0, 0.7, 1.4]),
)
def test_a_batch_has_the_captions_of_a_plain_search_image_by_image(
    seed, images, beams, max_words, eagerness, spread, block_repeats, bad_endings, length_norm
):
    """From captions that end at once to captions that never end, and beams wider than the words.

    With 1 in `block_repeats` the three words are soon used up: then a caption ends on any word.
    """
    torch.manual_seed(seed)
    logits = spread * torch.randn(images, max_words + 1, V, V)  # no two captions score the same
    logits[..., EOS] += eagerness * spread * torch.rand(images, 1, 1)

    def step(tokens, state, image):
        (length,) = state
        return logits[image, length, tokens], (length + 1,), None

    config = DecodeConfig(
        beam_size=beams, max_words=max_words, block_repeats=block_repeats, length_norm=length_norm
    )
    found = beam_search(step, (torch.zeros(images, dtype=torch.long),), config, bad_endings)
    for index, hypotheses in enumerate(found):
        wanted = plain_beam_search(logits[index], config, bad_endings)
        assert [tuple(h.tokens) for h in hypotheses] == [words for words, _ in wanted]
        assert [h.log_prob for h in hypotheses] == pytest.approx([s for _, s in wanted], abs=1e-4)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    block_repeats=st.integers(0, 3),
    bad_endings=st.sampled_from([(), (A,), (A, B, C)]),
    whole_endings=st.booleans(),
)
def test_samples_neither_repeat_nor_end_badly_and_score_as_if_no_word_were_blocked(
    seed, block_repeats, bad_endings, whole_endings
):
    torch.manual_seed(seed)
    logits = torch.randn(2, V, V)
    config = DecodeConfig(
        max_words=6, length_norm=0, sample=True, captions=20, seed=seed,
        block_repeats=block_repeats, whole_endings=whole_endings,
    )  # fmt: skip

    def step(tokens, state, image):
        return logits[image, tokens], state, None

    found = search(step, (torch.zeros(2, 1),), config, bad_endings)
    forbidden = bad_endings if whole_endings else ()
    for index, hypotheses in enumerate(found):
        assert len(hypotheses) == 20
        for words, log_prob in ((h.tokens, h.log_prob) for h in hypotheses):
            assert not repeats(words, block_repeats)
            stuck = block_repeats and all(repeats([*words, w], block_repeats) for w in (A, B, C))
            assert len(words) == 6 or stuck or words[-1] not in forbidden
            wanted = 0.0
            for t, (last, word) in enumerate(zip([BOS, *words], [*words, EOS], strict=True)):
                row = logits[index, last].clone()
                row[[PAD, BOS, UNK] + [EOS] * (t == 0)] = -torch.inf
                wanted += row.log_softmax(-1)[word].item() if t < 6 else 0.0
            assert log_prob == pytest.approx(wanted, abs=1e-4)


LOOP = {BOS: {A: 1.0}, A: {B: 0.9, EOS: 0.1}, B: {A: 0.8, C: 0.2}, C: {A: 0.5, B: 0.4, EOS: 0.1}}


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, [A, B, A, B, A]),
        (1, [A, B, C]),
        (2, [A, B, A]),
        (3, [A, B, A, B, C]),
        (9, [A, B] * 2 + [A]),
    ],
)
def test_blocked_repeats_lead_a_greedy_caption_out_of_its_loop(size, words):
    found = beam_search(*table(LOOP), replace(PLAIN, block_repeats=size))[0][0]
    assert found.tokens == words


@pytest.mark.parametrize("sampled", [False, True])
def test_a_caption_without_possible_words_ends_on_any_word(sampled):
    config = replace(PLAIN, block_repeats=1, max_words=9, sample=sampled)
    (found,) = search(*table(LOOP), config, bad_endings=[A, B, C])[0]
    assert sorted(found.tokens) == [A, B, C]


def test_a_caption_continues_after_a_bad_ending_and_its_score_includes_the_continuation():
    rows = {BOS: {A: 1.0}, A: {EOS: 0.9, B: 0.1}, B: {EOS: 1.0}}
    whole = search(*table(rows), PLAIN, bad_endings=[A])[0][0]
    assert whole.tokens == [A, B]
    assert whole.log_prob == pytest.approx(torch.tensor(0.1).log().item(), abs=1e-4)
    free = replace(PLAIN, whole_endings=False)
    assert search(*table(rows), free, bad_endings=[A])[0][0].tokens == [A]
    assert search(*table(rows), PLAIN)[0][0].tokens == [A]


@pytest.mark.parametrize("sampled", [False, True])
def test_the_first_step_has_one_row_for_each_image_and_finished_images_have_none(sampled):
    step, state = table({BOS: {C: 1.0}, C: {C: 1.0}}, {BOS: {A: 1.0}, A: {EOS: 1.0}})
    seen = []

    def recording(tokens, state, image):
        seen.append(image.tolist())
        return step(tokens, state, image)

    config = replace(PLAIN, beam_size=1 if sampled else 2, max_words=4, sample=sampled)
    search(recording, state, config)
    wide = 1 if sampled else 2
    assert seen[0] == [0, 1]
    assert seen[1] == [0] * wide + [1] * wide
    assert seen[-1] == [0] * wide
    assert all(rows == sorted(rows) for rows in seen)


def test_captions_are_distinct_and_best_first():
    found = beam_search(*table(EASY), replace(PLAIN, beam_size=3))[0]
    assert found[0].tokens == [C, A]
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
    assert len({tuple(h.tokens) for h in found}) == len(found)


@pytest.mark.parametrize(("length_norm", "chance"), [(0.0, 0.6 * 0.9), (3.0, 0.6 * 0.9 * 0.8)])
def test_a_caption_that_ends_at_max_words_and_is_cut_there_is_returned_once(length_norm, chance):
    """It has the better of its two scores: a norm of 3 makes the end pay."""
    rows = {BOS: {A: 0.4, B: 0.6}, A: {A: 1.0}, B: {C: 0.9, EOS: 0.1}, C: {EOS: 0.8, A: 0.2}}
    config = replace(PLAIN, beam_size=3, max_words=2, length_norm=length_norm)
    found = beam_search(*table(rows), config)[0]
    captions = [h.tokens for h in found]
    assert sorted(captions) == sorted([[B, C], [A, A], [B]])
    log_prob = found[captions.index([B, C])].log_prob
    assert log_prob == pytest.approx(torch.tensor(chance).log().item(), abs=1e-4)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    batch=st.permutations(range(5)),
    size=st.integers(1, 5),
    captions=st.integers(1, 8),
    temperature=st.sampled_from([0.01, 0.3, 1.0]),
)
def test_distinct_samples_of_an_image_differ_and_do_not_depend_on_its_batch(
    seed, batch, size, captions, temperature
):
    config = DecodeConfig(
        max_words=4, sample=True, captions=captions, seed=seed, temperature=temperature
    )
    images = batch[:size]
    found = search(*random_step(seed, images, 4), config, distinct=True)
    for image, hypotheses in zip(images, found, strict=True):
        assert 1 <= len(hypotheses) <= captions
        assert len({tuple(h.tokens) for h in hypotheses}) == len(hypotheses)
        assert temperature < 1 or len(hypotheses) == captions
        assert [h.score for h in hypotheses] == sorted((h.score for h in hypotheses), reverse=True)
        alone = search(*random_step(seed, [image], 4), config, distinct=True)[0]
        assert facts(hypotheses) == facts(alone)


def test_distinct_samples_are_the_first_different_ones_of_independent_samples():
    step, state = table(
        {BOS: {A: 0.9, B: 0.06, C: 0.04}, A: {EOS: 1.0}, B: {EOS: 1.0}, C: {EOS: 1.0}}
    )
    seconds = []
    config = replace(PLAIN, sample=True, captions=2)
    for seed in range(400):
        found = search(step, state, config, seeds=[seed], distinct=True)[0]
        first = sample(step, state, config, uniforms=draw_uniforms([seed], config))[0][0]
        assert first.tokens in [h.tokens for h in found]
        seconds += [h.tokens for h in found if h.tokens != first.tokens and first.tokens == [A]]
    assert 0.45 < seconds.count([B]) / len(seconds) < 0.75  # 0.06 to 0.04


def test_a_wide_beam_finds_the_best_of_all_captions_in_their_order():
    wide = beam_search(*table(TRAP), replace(PLAIN, beam_size=6))[0]
    chances = {(B,): 0.4, (A,): 0.3, (A, C): 0.15}
    for found, (words, chance) in zip(wide, chances.items(), strict=False):
        assert found.tokens == list(words)
        assert found.log_prob == pytest.approx(torch.tensor(chance).log().item(), abs=1e-4)


def test_a_caption_that_never_ends_is_cut_and_returned():
    endless = {BOS: {A: 1.0}, A: {B: 1.0}, B: {A: 1.0}}
    for beams in (1, 3):
        best = beam_search(*table(endless), replace(PLAIN, beam_size=beams))[0][0]
        assert best.tokens == [A, B, A, B, A]


def test_length_norm_prefers_the_longer_of_two_likely_captions():
    rows = {BOS: {A: 0.5, B: 0.5}, A: {EOS: 1.0}, B: {C: 0.9}, C: {EOS: 1.0}}
    short = beam_search(*table(rows), replace(PLAIN, beam_size=2))[0][0]
    long = beam_search(*table(rows), replace(PLAIN, beam_size=2, length_norm=1.0))[0][0]
    assert short.tokens == [A]
    assert long.tokens == [B, C]


def test_unknown_words_and_empty_captions_are_never_written():
    rows = {BOS: {UNK: 0.8, EOS: 0.15, A: 0.05}, A: {UNK: 0.9, EOS: 0.1}}
    for config in (PLAIN, replace(PLAIN, beam_size=3), replace(PLAIN, sample=True)):
        assert search(*table(rows), config)[0][0].tokens == [A]


def test_attention_is_that_of_the_steps_that_chose_each_word():
    for config in (replace(PLAIN, beam_size=3), replace(PLAIN, sample=True, captions=3)):
        for hypothesis in search(*table(TRAP), config)[0]:
            read = [BOS, *hypothesis.tokens[:-1]]  # the table "looks" at the word it read
            assert hypothesis.attention.argmax(-1).tolist() == read


def test_samples_follow_the_probabilities_and_repeat_with_the_seed():
    config = replace(PLAIN, sample=True, captions=400, seed=3)
    step, state = table(TRAP)
    first = [h.tokens[0] for h in sample(step, state, config)[0]]
    assert 0.5 < first.count(A) / 400 < 0.7
    assert [h.tokens[0] for h in sample(step, state, config)[0]] == first


def random_step(seed, images, max_words):
    """A step over random logits, and a state for it: an image's logits depend on it alone."""
    logits = torch.stack(
        [
            torch.randn(max_words, V, V, generator=torch.Generator().manual_seed(seed + image))
            for image in images
        ]
    )

    def step(tokens, state, image):
        (length,) = state
        looked = torch.nn.functional.one_hot(tokens, V).float()
        return logits[image, length, tokens], (length + 1,), looked

    return step, (torch.zeros(len(images), dtype=torch.long),)


def facts(found):
    return [
        (h.tokens, pytest.approx(h.score), h.attention.argmax(-1).tolist(), len(h.attention))
        for h in found
    ]


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    batch=st.permutations(range(5)),
    size=st.integers(1, 5),
    own_seeds=st.booleans(),
    cut=st.sampled_from([{}, {"top_k": 2}, {"top_p": 0.7}, {"temperature": 0.5}]),
    block_repeats=st.integers(0, 2),
    check_every=st.integers(1, 9),
)
def test_samples_of_an_image_do_not_depend_on_its_batch_or_its_place_in_it(
    seed, batch, size, own_seeds, cut, block_repeats, check_every
):
    """Nor on how often the rows of finished samples are dropped."""
    config = DecodeConfig(
        max_words=6, sample=True, captions=3, seed=seed, block_repeats=block_repeats, **cut
    )
    for image in (images := batch[:size]):
        seeds = [(seed, number) for number in images] if own_seeds else None
        uniforms = None if seeds is None else draw_uniforms(seeds, config)
        found = sample(
            *random_step(seed, images, 6), config, [A], uniforms=uniforms, check_every=check_every
        )[images.index(image)]
        found = sorted(found, key=lambda hypothesis: -hypothesis.score)
        alone = search(
            *random_step(seed, [image], 6),
            config,
            [A],
            seeds=[(seed, image)] if own_seeds else None,
        )[0]
        assert facts(found) == facts(alone)


def test_the_same_image_has_the_same_samples_unless_seeds_differ():
    config = replace(PLAIN, sample=True, captions=20)
    step, state = random_step(0, [7, 7], 5)
    first, second = search(step, state, config)
    assert facts(first) == facts(second)
    first, second = search(step, state, config, seeds=[0, 1])
    assert facts(first) != facts(second)
    assert facts(first) == facts(search(step, state, config)[0])  # of seed 0
    for seed in (-1, 2**70):
        assert len(search(step, state, config, seeds=[seed, (seed, 3)])[1]) == 20


def test_words_are_sampled_as_often_as_their_probabilities_say():
    torch.manual_seed(0)
    logits = torch.randn(3, V) * 2
    config = replace(PLAIN, sample=True, captions=20_000, max_words=1)
    found = search(lambda t, s, i: (logits[i], s, None), (torch.zeros(3, 1),), config)
    for image in range(3):
        row = logits[image].clone()
        row[[PAD, BOS, EOS, UNK]] = -torch.inf  # a caption has at least one word
        counts = torch.bincount(torch.tensor([h.tokens[0] for h in found[image]]), minlength=V)
        assert counts[:4].tolist() == [0] * 4
        torch.testing.assert_close(counts / 20_000, row.softmax(-1), atol=0.015, rtol=0)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2.0**-24])
def test_the_ends_of_the_unit_interval_choose_words_that_may_be_written(uniform):
    """With 3 words of 50,000 that have a probability, and sums that are rounded."""
    torch.manual_seed(0)
    logits = torch.full((50_000,), -torch.inf)
    logits[torch.tensor([100, 200, 49_000])] = torch.tensor([0.0, 0.3, -9.0])
    config = replace(PLAIN, sample=True, max_words=1)
    step = lambda tokens, state, image: (logits.expand(len(tokens), -1).clone(), state, None)  # noqa: E731
    found = sample(step, (torch.zeros(1, 1),), config, uniforms=torch.full((1, 1, 1), uniform))
    assert found[0][0].tokens == [100 if uniform == 0 else 49_000]


def test_attention_is_kept_only_if_wanted():
    for config in (replace(PLAIN, beam_size=3), replace(PLAIN, sample=True, captions=3)):
        with_it = search(*table(TRAP, EASY), config)
        without = search(*table(TRAP, EASY), config, attention=False)
        for ours, theirs in zip(with_it, without, strict=True):
            assert [h.tokens for h in ours] == [h.tokens for h in theirs]
            assert all(h.attention is None for h in theirs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_sampling_waits_for_a_gpu_every_four_words():
    import warnings

    logits = torch.randn(V, V, device="cuda")
    logits[:, EOS] = -torch.inf
    config = replace(PLAIN, sample=True, captions=8, max_words=40, block_repeats=9)
    state = (torch.zeros(4, 1, device="cuda"),)
    search(lambda t, s, i: (logits[t], s, None), state, config)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            search(lambda t, s, i: (logits[t], s, None), state, config)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(caught) <= 40 // 4 + 6


@pytest.mark.parametrize("cut", [{"top_k": 1}, {"top_p": 0.5}, {"temperature": 0.01}])
def test_sampling_cut_to_the_likeliest_words_is_greedy(cut):
    config = replace(PLAIN, sample=True, captions=20, **cut)
    assert {h.tokens[0] for h in sample(*table(TRAP), config)[0]} == {A}


def test_a_sample_that_is_cut_keeps_its_score():
    rows = {BOS: {A: 1.0}, A: {A: 1.0}}
    found = sample(*table(rows), replace(PLAIN, sample=True, max_words=3))[0][0]
    assert found.tokens == [A, A, A]
    assert found.log_prob == pytest.approx(0, abs=1e-4)


def test_more_captions_than_beams_are_refused_with_advice():
    with pytest.raises(ConfigError, match="raise beam_size"):
        DecodeConfig(beam_size=2, captions=3)
