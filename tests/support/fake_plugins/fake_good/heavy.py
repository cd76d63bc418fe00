CONSTANT = 3


class Objective:
    def __init__(self, model, rate, *, decoder_rate=0.5, **others):
        self.given = (model, rate, decoder_rate, others)
