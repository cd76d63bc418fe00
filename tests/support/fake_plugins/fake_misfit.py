from stzoo.plugins.hookspecs import Component, hookimpl


class TakesNothing:
    def __init__(self):
        pass


class TakesItByName:
    def __init__(self, *, backbone):
        self.backbone = backbone


class FailsInside:
    def __init__(self, backbone):
        self.width = backbone.no_such_attribute


class RefusesAnOption:
    def __init__(self, backbone, rate: float = 2.0):
        raise ValueError(f"rate of {backbone} is {rate}")


@hookimpl
def stzoo_objectives():
    for build in (TakesNothing, TakesItByName, FailsInside, RefusesAnOption):
        name = "".join(f"-{letter}" if letter.isupper() else letter for letter in build.__name__).lower()
        yield Component(name=f"fake{name}", build=build, summary="it cannot be built")
