"""How a command says that it did what was asked and failed: its traceback is recorded, one line is enough."""


class Failed(RuntimeError):
    """A run that began and failed, a sweep with too many of these, or one from which nothing is learned."""
