"""Public functions refuse arguments that they do not take, and their help reads as Python."""

import inspect
import re

import pytest
from pydantic import BaseModel, Field

import stzoo
from stzoo.errors import RecipeError
from stzoo.utils.public import public

FUNCTIONS = [name for name in stzoo._LAZY if inspect.isfunction(getattr(stzoo, name))]
REQUIRED = {
    "adapt": {"model": "x", "corpus": "x"},
    "ask": {"corpus": "x"},
    "prepare": {"preparation": "master"},
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_unknown_arguments_are_short_errors(name):
    with pytest.raises(RecipeError, match=re.escape(f"{name}() takes ")):
        getattr(stzoo, name)(*range(9))
    with pytest.raises(RecipeError, match=r"no argument 'progres'; did you mean 'progress'|unknown setting"):
        output = {"output": "x"} if "output" in inspect.signature(getattr(stzoo, name)).parameters else {}
        getattr(stzoo, name)(**REQUIRED.get(name, {}), **output, progres=False)


def test_errors_suggest_names_and_lists():
    with pytest.raises(RecipeError, match=r"search\(\) has no argument 'top_k'; did you mean 'k'\?"):
        stzoo.search(top_k=3)
    with pytest.raises(RecipeError, match=r"unknown setting 'lr'; did you mean 'learning_rate'\?"):
        stzoo.finetune("a", output="b", lr=1e-5)
    with pytest.raises(RecipeError, match=r"takes 1 argument without a name \(systems\), but 2 were given"):
        stzoo.compare("a", "b")
    with pytest.raises(RecipeError, match=r"finetune\(\): missing a required argument: 'output'"):
        stzoo.finetune("a")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_help_has_arguments_not_flags(name):
    function = getattr(stzoo, name)
    assert not re.search(r"(?<![\w-])--[a-z]", function.__doc__)
    assert not re.search(r"Validator|<function", str(inspect.signature(function)))
    described = re.findall(r"^ {4}(\w+): ", function.__doc__, re.MULTILINE)
    assert len(described) == len(set(described))


def test_flags_in_descriptions_become_arguments():
    class Settings(BaseModel):
        steps: int = Field(1, description="Steps; --no-keep-base and --save-steps matter.")

    @public(Settings)
    def work(**settings):
        """Works."""

    assert work.__doc__.endswith("steps: Steps; keep_base=False and save_steps matter.")
