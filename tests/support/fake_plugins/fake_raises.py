from stzoo.plugins.hookspecs import Component, hookimpl


@hookimpl
def stzoo_objectives():
    yield Component(name="fake-before-the-fault", build=print, summary="left out with its hook")
    raise RuntimeError("halfway through")


@hookimpl
def stzoo_poolings():
    raise LookupError("at once")


@hookimpl
def stzoo_decoders():
    yield Component(name="fake-survivor", build=print, summary="of the hook that works")
