"""A decoder process on a system that knows the limits of memory and refuses them, as macOS does."""

import errno
import resource

from loopjax.audio.worker import serve

_setrlimit = resource.setrlimit


def refuse(number, limits):
    """EINVAL for memory, everything else as it is."""
    if number in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        raise OSError(errno.EINVAL, "Invalid argument")
    _setrlimit(number, limits)


if __name__ == "__main__":
    resource.setrlimit = refuse
    serve()
