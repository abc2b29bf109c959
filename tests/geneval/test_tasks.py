"""Tasks and their prompts are two forms of one thing."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from lotts_search.errors import BadInput
from lotts_search.geneval.tasks import CLASSES, COLOURS, RELATIONS, TAGS, Item, Task, geneval_tasks
from lotts_search.study.prompts import load_prompts

EXAMPLES = {
    "a photo of an apple": Task((Item("apple"),)),
    "a photo of a pair of scissors": Task((Item("scissors"),)),
    "a photo of an orange orange": Task((Item("orange", 1, "orange"),)),
    "a photo of an orange": Task((Item("orange"),)),
    "a photo of a dog and a hot dog": Task((Item("dog"), Item("hot dog"))),
    "a photo of a teddy bear right of a bear": Task((Item("teddy bear"), Item("bear")), "right of"),
    "a photo of three people": Task((Item("person", 3),)),
    "a photo of two computer mice": Task((Item("computer mouse", 2),)),
    "a photo of four wine glasses": Task((Item("wine glass", 4),)),
    "a photo of two benches": Task((Item("bench", 2),)),
    "a photo of ten toothbrushes": Task((Item("toothbrush", 10),)),
    "a photo of a red car and an orange bus": Task((Item("car", 1, "red"), Item("bus", 1, "orange"))),
}


@pytest.mark.parametrize("prompt", EXAMPLES)
def test_examples(prompt: str) -> None:
    assert EXAMPLES[prompt].prompt == prompt
    assert Task.of(prompt) == EXAMPLES[prompt]
    assert Task.of(f" {prompt}\n") == EXAMPLES[prompt]


def test_every_task_is_read_back_from_its_prompt() -> None:
    every = [Task((Item(name),)) for name in CLASSES]
    every += [Task((Item(name, count),)) for name in CLASSES for count in range(2, 11)]
    every += [Task((Item(name, 1, colour),)) for name in CLASSES for colour in COLOURS]
    every += [Task((Item(a), Item(b)), r) for a in CLASSES for b in CLASSES[::7] for r in (None, *RELATIONS)]
    every += [Task((Item(a, 1, c), Item(b, 1, d))) for a in CLASSES[::3] for b in CLASSES for c, d in zip(COLOURS, COLOURS[3:], strict=False)]  # fmt: skip
    assert len({task.prompt for task in every}) == len(set(every)), "no two tasks have one prompt"
    assert [Task.of(task.prompt) for task in every] == every


def test_prompts_of_genevals_own_form_are_read() -> None:
    assert Task.of("a photo of four knifes") == Task((Item("knife", 4),))
    assert Task.of("a photo of two benchs") == Task((Item("bench", 2),))
    assert Task.of("a photo of three skises") == Task((Item("skis", 3),))
    assert Task.of("a photo of a skis") == Task((Item("skis"),))


@pytest.mark.parametrize(
    "prompt",
    ["", "two dogs", "a photo of one dog", "a photo of eleven dogs", "a photo of a unicorn", "a photo of a dog, a cat",
     "a photo of a dog near a cat", "a photo of a beige car", "A photo of two dogs and a cat", "a photo of a dogs"],
)  # fmt: skip
def test_other_prompts_are_refused(prompt: str) -> None:
    with pytest.raises(BadInput, match="is no prompt of GenEval's tasks"):
        Task.of(prompt)


def test_metadata_has_genevals_form() -> None:
    def metadata(prompt: str) -> object:
        return json.loads(json.dumps(Task.of(prompt).metadata))

    assert metadata("a photo of three cats") == {
        "tag": "counting", "include": [{"class": "cat", "count": 3}], "exclude": [{"class": "cat", "count": 4}],
        "prompt": "a photo of three cats",
    }  # fmt: skip
    assert metadata("a photo of a cat above a dog") == {
        "tag": "position",
        "include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["above", 0]}],
        "prompt": "a photo of a cat above a dog",
    }
    assert metadata("a photo of a red car and a blue cup") == {
        "tag": "color_attr",
        "include": [{"class": "car", "count": 1, "color": "red"}, {"class": "cup", "count": 1, "color": "blue"}],
        "prompt": "a photo of a red car and a blue cup",
    }


def test_the_drawn_tasks_are_balanced_distinct_and_repeatable() -> None:
    tasks = geneval_tasks()
    assert Counter(task.tag for task in tasks) == {tag: 80 if tag == "single_object" else 100 for tag in TAGS}
    assert len({task.prompt for task in tasks}) == 580
    assert {task.items[0].name for task in tasks if task.tag == "single_object"} == set(CLASSES)
    assert tuple(task.tag for task in tasks[:6]) == TAGS, "the first ones are of all kinds"
    assert geneval_tasks() == tasks and geneval_tasks(1) != tasks
    counted = [task.items[0] for task in tasks if task.tag == "counting"]
    assert {item.count for item in counted} == {2, 3, 4} and not {item.name for item in counted} & {"skis", "broccoli"}
    assert not any(item.colour and item.name == "person" for task in tasks for item in task.items)
    assert {task.relation for task in tasks} == {None, *RELATIONS}
    with pytest.raises(BadInput, match="of a kind, not 1000"):
        geneval_tasks(per_tag=1000)


def test_the_prompt_set_has_the_metadata_as_fields() -> None:
    prompts = load_prompts("geneval", count=20, seed=None, where={"tag": "position"})
    assert len(prompts) == 20
    for prompt in prompts:
        assert {**prompt.fields, "prompt": prompt.text} == Task.of(prompt.text).metadata
    assert len(load_prompts("geneval")) == 580
