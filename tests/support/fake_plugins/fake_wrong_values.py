from stzoo.plugins.hookspecs import Checkpoint, Component, hookimpl


@hookimpl
def stzoo_objectives():
    yield {"name": "fake-dict", "build": print}


@hookimpl
def stzoo_poolings():
    yield Component(name="Fake_Name", build=print, summary="not kebab-case")


@hookimpl
def stzoo_decoders():
    yield Component(name="fake-again", build=print, summary="the first")
    yield Component(name="fake-again", build=print, summary="the second")


@hookimpl
def stzoo_checkpoints():
    yield Checkpoint(
        name="fake-base",
        hub_id="",
        revision="",
        license="",
        source="",
        recipe="",
        summary="no data in its name",
    )


@hookimpl
def stzoo_recipes():
    pass
