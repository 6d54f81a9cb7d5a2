"""Errors that the command line turns into one line on stderr and an exit code."""


class LoopjaxError(Exception):
    """Base of the errors that carry an exit code; the message names the thing and the fix."""

    exit_code = 1


class UserError(LoopjaxError):
    """A mistake in the command, the configuration or an input path (exit code 2)."""

    exit_code = 2


class ParameterError(UserError, ValueError):
    """A hyper-parameter has a wrong type or is out of range; the message names it."""


class HeldError(UserError):
    """Another run is writing the same folder."""


class TooManyRejectedError(LoopjaxError):
    """More inputs were rejected than `max_failures` allows (exit code 4)."""

    exit_code = 4


class ModelCheckError(LoopjaxError):
    """A model failed its check: hypersphere collapse, NaN, no spread (exit code 5)."""

    exit_code = 5


class WriteError(LoopjaxError):
    """Results could not be written: disk full, no permission (exit code 6)."""

    exit_code = 6


class StoppedError(LoopjaxError):
    """Another process of the run met an error; the exit code is that error's."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


class InterruptedRunError(LoopjaxError):
    """A signal stopped the run after a clean save (exit code 130 for SIGINT, 143 for SIGTERM)."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number
