"""How entries are written, found, configured and added."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field
from support import refusal

from benchmark import params
from benchmark.catalogue import ATTACKS, DEFENSES, Catalogue, load_file
from benchmark.errors import RegistryError, SpecError
from benchmark.facts import AttackFacts, Source
from benchmark.ref import Ref, display, split_list
from benchmark.registry import attack, dataset, defense, model
from benchmark.types import Access, Norm

SOURCE = Source("Nobody: Nothing", "https://example.org", 2024)
FACTS = AttackFacts(SOURCE, Access.SCORES, (Norm.LINF,), randomised=False)


def toy(
    problem,
    rng,
    *,
    step: Annotated[float, Field(gt=0, le=1)] = 0.5,
    probes: Annotated[int, Field(ge=1)] = 3,
    loss: Literal["margin", "ce"] = "margin",
    quick: bool = False,
    limit: float | None = 2.0,
):
    """Do nothing."""


SCHEMA = params.schema(toy)
USUAL = params.defaults(SCHEMA)
VALUES = st.fixed_dictionaries(
    {
        "step": st.floats(1e-300, 1.0),
        "probes": st.integers(1, 2**70),
        "loss": st.sampled_from(["margin", "ce"]),
        "quick": st.booleans(),
        "limit": st.none() | st.floats(allow_nan=False, allow_infinity=False),
    }
)


@settings(max_examples=150, deadline=None)
@given(VALUES, st.from_regex(r"[a-z][a-z0-9.-]{0,8}", fullmatch=True), st.sampled_from(["", "a/b"]))
def test_what_is_displayed_is_read_back_as_the_same_choice(values, name, argument):
    ref = Ref.parse(display(name, argument, values, USUAL))
    assert (ref.name, ref.argument) == (name, argument)
    assert params.resolve(SCHEMA, ref.parameters, "toy") == values
    assert set(ref.parameters) == {key for key in values if values[key] != USUAL[key]}


def test_defaults_are_not_displayed_and_the_rest_is_sorted():
    assert display("toy", "", USUAL, USUAL) == "toy"
    changed = {**USUAL, "step": 0.25, "limit": None, "quick": True}
    assert display("toy", "x", changed, USUAL) == "toy:x[limit=none,quick=true,step=0.25]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("square", ("square", "", {})),
        (" sign_hunter ", ("sign-hunter", "", {})),
        ("timm:resnet18.a1_in1k", ("timm", "resnet18.a1_in1k", {})),
        ("folder:/a b/c", ("folder", "/a b/c", {})),
        ("square[ p = 0.3 , x=none]", ("square", "", {"p": "0.3", "x": "none"})),
        ("a:b[c=d=e]", ("a", "b", {"c": "d=e"})),
        ("a[]", ("a", "", {})),
    ],
)
def test_references_are_read(text, expected):
    ref = Ref.parse(text)
    assert (ref.name, ref.argument, ref.parameters) == expected


@pytest.mark.parametrize(
    "text", ["", "1a", "a[", "a]b", "a[p]", "a[p=]", "a[=1]", "a[p=1,p=2]", "a:[p=1]", "a b"]
)
def test_malformed_references_are_refused(text):
    assert f"'{text}'" in refusal(SpecError, lambda: Ref.parse(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,b", ["a", "b"]),
        ("a[x=1,y=2], b", ["a[x=1,y=2]", "b"]),
        (",a,,b[x=1],", ["a", "b[x=1]"]),
        ("", []),
    ],
)
def test_lists_are_split_outside_brackets(text, expected):
    assert split_list(text) == expected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["a", "b[x=1]", "c:d[x=1,y=2]", "e-f[]"]), max_size=6))
def test_joined_references_are_split_again(parts):
    assert split_list(",".join(parts)) == parts


def test_given_values_are_converted_and_the_rest_is_default():
    given_ = {"step": "8/255", "probes": "7", "quick": "true", "limit": "none", "loss": "ce"}
    found = params.resolve(SCHEMA, given_, "attack 'toy'")
    expected = {"step": 8 / 255, "probes": 7, "loss": "ce", "quick": True, "limit": None}
    assert found == expected and list(found) == list(USUAL)
    assert params.resolve(SCHEMA, {}, "toy") == USUAL


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ({"stp": "1"}, ["no parameter 'stp'", "Did you mean: step?"]),
        ({"zzz": "1"}, ["no parameter 'zzz'", "Allowed: limit, loss, probes, quick, step."]),
        ({"step": "2"}, ["step", "less than or equal to 1"]),
        ({"step": "9/8"}, ["step", "less than or equal to 1"]),
        ({"step": "much"}, ["step", "much"]),
        ({"step": "none"}, ["step"]),
        ({"step": "nan"}, ["step"]),
        ({"limit": "inf"}, ["limit"]),
        ({"probes": "1.5"}, ["probes"]),
        ({"probes": "1/2"}, ["probes"]),
        ({"loss": "margins"}, ["loss", "margins", "ce"]),
        ({"quick": "perhaps"}, ["quick"]),
        ({"step": "1/0"}, ["step"]),
    ],
)
def test_unknown_names_and_bad_values_are_refused_by_name(given_, words):
    message = refusal(SpecError, lambda: params.resolve(SCHEMA, given_, "attack 'toy'"))
    for word in ["attack 'toy'", *words]:
        assert word in message


def test_a_parameter_without_type_or_default_is_a_programming_error():
    with pytest.raises(TypeError, match="'step'"):
        params.schema(lambda *, step=1: None)

    def needs(*, step: int): ...

    with pytest.raises(TypeError, match="'step'"):
        params.schema(needs)


def test_a_name_is_given_once_whatever_its_hyphens():
    catalogue = Catalogue("attack")
    catalogue.add("my_toy", toy, FACTS)
    for name in ("my-toy", "my_toy"):
        assert catalogue.get(name).name == "my-toy"
        message = refusal(RegistryError, lambda name=name: catalogue.add(name, toy, FACTS))
        assert "'my-toy'" in message and toy.__module__ in message


@pytest.mark.parametrize(
    ("name", "words"), [("squar", "Did you mean: square?"), ("qqqq", "Allowed: ")]
)
def test_unknown_names_get_the_nearest_match(name, words):
    message = refusal(RegistryError, lambda: ATTACKS.get(name))
    assert f"unknown attack '{name}'" in message and words in message


def test_a_choice_is_written_with_what_was_chosen():
    choice = DEFENSES.choose("rnd[sigma=4/100,clip=true]")
    wanted = {"sigma": 0.04, "clip": True, "quantise": False}
    assert str(choice) == "rnd[sigma=0.04]" and choice.values == wanted
    assert choice.record()["parameters"] == choice.values


@pytest.mark.parametrize("text", ["square:x", "rnd:x[sigma=0.1]"])
def test_an_argument_where_none_belongs_is_refused(text):
    catalogue = ATTACKS if "square" in text else DEFENSES
    assert text in refusal(SpecError, lambda: catalogue.choose(text))


@pytest.mark.parametrize("decorator", [attack, defense, model, dataset])
def test_unknown_or_missing_facts_are_a_type_error(decorator):
    with pytest.raises(TypeError, match="colour"):
        decorator(source=SOURCE, colour="red")
    with pytest.raises(TypeError):
        decorator()


GOOD = """
from benchmark.facts import Source
from benchmark.registry import attack
from benchmark.types import Access, Norm

@attack(source=Source("a", "b", 2024), access=Access.LABEL, norms=(Norm.L2,), randomised=False)
def {name}(problem, rng, *, step: float = 0.5):
    '''Do nothing.'''
"""
DEFENSE = """
from dataclasses import dataclass
from benchmark.defense import Defense
from benchmark.facts import Level, Source, Traits
from benchmark.registry import defense

@defense(source=Source("a", "b", 2024), level=Level.IMAGES, traits=Traits(), strength="{strength}")
@dataclass(kw_only=True)
class Toy({base}):
    '''Do nothing.'''
    sigma: float = 0.1
"""


@pytest.fixture
def plugin(tmp_path):
    """Write plug-in files, and forget what they registered afterwards."""

    def write(name, text):
        path = tmp_path / name
        path.write_text(text)
        return path

    yield write
    for name in [n for n in sys.modules if n.startswith("querybench_plugin_")]:
        del sys.modules[name]
        for catalogue in (ATTACKS, DEFENSES):
            for entry in [e for e in catalogue if e.module == name]:
                catalogue.remove(entry.name)


def test_a_plug_in_is_found_by_name_and_loaded_once(plugin):
    path = plugin("my_toy.py", GOOD.format(name="my_toy"))
    first, again = load_file(path), load_file(path)
    assert [entry.name for entry in first] == [entry.name for entry in again] == ["my-toy"]
    assert ATTACKS.choose("my_toy[step=0.25]").values["step"] == 0.25
    assert first[0].facts.access is Access.LABEL and first[0].summary == "Do nothing."


def test_a_defense_is_named_like_its_file(plugin):
    path = plugin("shield.py", DEFENSE.format(strength="sigma", base="Defense"))
    assert load_file(path)[0].name == "shield"
    assert DEFENSES.get("shield").facts.strength == "sigma"


BAD = [
    ("broken.py", "def broken(:", "SyntaxError"),
    ("broken.py", "import nothing_like_this", "nothing_like_this"),
    ("broken.py", "raise ValueError('first line\\nsecond line')", "first line"),
    ("broken.py", "x = 1", "registers nothing"),
    ("broken.txt", "x = 1", "not a Python file"),
    ("broken.py", GOOD.format(name="other"), "broken"),
    ("square.py", GOOD.format(name="square"), "already registered"),
    ("broken.py", DEFENSE.format(strength="sgma", base="Defense"), "sgma"),
    ("broken.py", DEFENSE.format(strength="sigma", base="object"), "must inherit"),
]


@pytest.mark.parametrize(("name", "text", "words"), BAD)
def test_a_plug_in_that_cannot_be_used_is_refused_in_one_line(plugin, name, text, words):
    path = plugin(name, text)
    before = [entry.name for catalogue in (ATTACKS, DEFENSES) for entry in catalogue]
    for _ in range(2):  # the second try is no better
        assert words in refusal(RegistryError, lambda: load_file(path))
    after = [entry.name for catalogue in (ATTACKS, DEFENSES) for entry in catalogue]
    assert after == before


def test_a_plug_in_that_fails_half_way_can_be_mended_and_loaded(plugin):
    text = GOOD.format(name="halfway")
    path = plugin("halfway.py", text + "\nraise ValueError('too early')\n")
    assert "too early" in refusal(RegistryError, lambda: load_file(path))
    plugin("halfway.py", text)
    assert [entry.name for entry in load_file(path)] == ["halfway"]


def test_a_missing_plug_in_is_refused(tmp_path):
    message = refusal(RegistryError, lambda: load_file(tmp_path / "absent.py"))
    assert "absent.py" in message and "does not exist" in message
